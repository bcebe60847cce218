"""dataset.tokens: no more training text is taken than it says."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparing import Preparation, rows
from tiny import texts

from compression_pipeline.config import DatasetConfig
from compression_pipeline.phases.prepare import Text, content_key
from compression_pipeline.sources.base import SourceFile, Splits
from compression_pipeline.text.encode import Batch, Encoded, EncodedBatch, cut_short
from compression_pipeline.text.indexed import IndexedText

END = struct.pack("<H", 0)


def encoded(*lengths: int, part: bool = False) -> EncodedBatch:
    tokens = [b"".join([struct.pack("<H", 7) * (length - 1), END]) for length in lengths if length]
    whole = b"".join(tokens) if not part else struct.pack("<H", 7) * sum(lengths)
    return EncodedBatch(Encoded(whole, [*lengths]), Encoded(b"", []), 0, None, Batch(0, [], part=part, last=not part))


@given(st.lists(st.integers(2, 9) | st.just(0), max_size=6), st.data())
def test_documents_are_cut_where_there_are_enough(lengths: list[int], data: st.DataObject) -> None:
    found = encoded(*lengths)
    room = data.draw(st.integers(0, sum(lengths)))
    kept = cut_short(found, room, END).kept
    assert len(kept.tokens) == 2 * sum(kept.lengths)
    assert room - 1 <= sum(kept.lengths) <= room  # for one token of a document, and no end, there is no room
    assert all(length <= whole for length, whole in zip(kept.lengths, lengths, strict=False))
    ends = np.cumsum([length for length in kept.lengths if length])
    assert [place + 1 for place in np.flatnonzero(np.frombuffer(kept.tokens, np.uint16) == 0)] == [*ends]


@given(st.integers(0, 9))
def test_a_part_of_a_long_document_is_its_last_one(room: int) -> None:
    found = cut_short(encoded(9, part=True), room, END)
    assert found.batch.last
    left = max(room - 1, 0)  # the end comes behind it
    assert (found.kept.tokens, found.kept.lengths) == (struct.pack("<H", 7) * left, [left])


def train(preparation: Preparation, **dataset: Any) -> list[IndexedText]:
    told = DatasetConfig.model_validate({"sequenceLength": 8} | dataset)
    result = preparation.take(preparation.job("file:text").model_copy(update={"dataset": told}))
    data = preparation.artifact(result).data
    folders = [data / str(number) for number in range(2)] if "sources" in dataset else [data]
    found = [IndexedText(folder / "train") for folder in folders]
    assert sum(len(text.tokens) for text in found) == result.train_tokens
    return found


@pytest.mark.parametrize(("workers", "long"), [(1, False), (2, False), (1, True)])
def test_what_is_taken_is_the_beginning(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch, workers: int, long: bool
) -> None:
    monkeypatch.setattr("compression_pipeline.text.tokenize.SMALL_TEXT", 0)
    monkeypatch.setattr("compression_pipeline.text.encode.BATCH_CHARACTERS", 4000)
    if long:
        monkeypatch.setattr("compression_pipeline.text.encode.LONG", 500)
    preparation.write("text/train.jsonl", *rows(*texts()[:20]))
    preparation.write("text/validation.jsonl", *rows(*texts()[30:32]))
    [whole] = train(preparation, source="file:text", workers=workers)
    first = whole.tokens.tolist().index(whole.tokens[-1]) + 1  # as many as its first document and the end of it
    for tokens in (1500, first):
        [some] = train(preparation, source="file:text", workers=workers, tokens=tokens)
        assert len(some.tokens) == tokens < len(whole.tokens)
        assert some.tokens[:-1].tolist() == whole.tokens[: tokens - 1].tolist()
        assert some.tokens[-1] == whole.tokens[-1]  # the end of a document
    [all_of_it] = train(preparation, source="file:text", workers=workers, tokens=10**9)
    assert all_of_it.tokens.tolist() == whole.tokens.tolist()


def test_documents_are_held_out_of_those_that_are_taken(preparation: Preparation) -> None:
    preparation.write("text/a.jsonl", *rows(*texts()[:30]))
    result = preparation.run("file:text", tokens=1000, validationFraction=0.001)
    assert result.train_tokens == 1000
    assert result.validation_tokens > 0


def test_room_is_asked_for_what_is_taken(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    preparation.write("text/train.jsonl", *rows(*texts()[:30]))
    preparation.write("text/validation.jsonl", *rows(*texts()[30:32]))
    asked: list[int] = []
    monkeypatch.setattr("compression_pipeline.space.require", lambda store, needed, purpose: asked.append(needed))
    for dataset in ({"tokens": 100}, {"tokens": 200}, {"tokens": 10**9}, {}):
        preparation.run("file:text", **dataset)
    some, more, enough, everything = asked
    assert more - some == 4 * 100  # a token has 4 bytes at most
    assert some < enough == everything


def test_each_source_gives_its_share(preparation: Preparation) -> None:
    preparation.write("text/a.jsonl", *rows(*texts()[:20]))
    preparation.write("more/a.jsonl", *rows(*texts()[20:40]))
    sources = [{"source": "file:text", "weight": 0.75}, {"source": "file:more", "weight": 0.25}]
    found = train(preparation, sources=sources, tokens=1000)
    assert [len(text.tokens) for text in found] == [750, 250]


@pytest.mark.parametrize(
    ("told", "validation", "key"),
    [
        ({}, False, "657fbde3d4558a3f493d076793006318"),
        (
            {"textColumn": "body", "validationFraction": 0.1, "seed": 3, "sequenceLength": 64},
            False,
            "84f6bb0455bac262d085192f4cb3ab07",
        ),
        ({"textColumn": "body"}, True, "c6ffd67de528ce902b734bea27f1edb4"),
    ],
)
def test_keys_of_tokenized_text_are_those_of_earlier_versions(told: dict[str, Any], validation: bool, key: str) -> None:
    """Written down by the version that knew one source and no budget."""
    splits = Splits((SourceFile("a.jsonl", 10, "1" * 64),), (SourceFile("b.txt", 5, "2" * 64),) if validation else ())
    dataset = DatasetConfig.model_validate({"source": "file:a", "documents": "Rows", **told})
    nowhere: Any = None  # the key is made of what was found
    assert content_key(dataset, [Text(dataset.texts[0], "dataset", nowhere, splits)], teacher="t") == key
