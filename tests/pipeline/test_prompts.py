"""dataset.promptColumn: tokens are those of the plain text, and of each it is known whether it is learned."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparing import Preparation
from test_parts import KINDS, tokenizer
from test_prepare_sources import ONE, corpora, several
from tiny import END, texts
from tokenizers import Tokenizer

from compression_pipeline.config import DatasetConfig, PrepareResult
from compression_pipeline.errors import UserError
from compression_pipeline.text.encode import learned
from compression_pipeline.text.indexed import IndexedText
from compression_pipeline.text.tokenizer import encodings_of, ids_of

__all__ = ["corpora"]

COLUMNS = {"promptColumn": "prompt", "textColumn": "completion"}


def pairs(count: int = 12, start: int = 0) -> list[tuple[str, str]]:
    """Prompts and completions: texts, each cut behind a space or in a word."""
    found = [text[:4000] for text in texts() if len(text) > 900][start : start + count]
    return [(text[: 300 + n], text[300 + n :]) for n, text in enumerate(found)]


def lines(*told: tuple[str | None, str | None]) -> list[str]:
    return [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in told]


def split(folder: Path, name: str = "train") -> Iterator[tuple[list[int], list[int]]]:
    """Tokens and mask of each document."""
    text = IndexedText(folder / name)
    assert text.mask is not None
    for place, length in zip(text.places.tolist(), text.lengths.tolist(), strict=True):
        yield text.tokens[place : place + length].tolist(), text.mask[place : place + length].tolist()


def take(preparation: Preparation, source: str = "file:text", **dataset: Any) -> tuple[PrepareResult, Path]:
    result = preparation.take(preparation.job(source, **{**COLUMNS, **dataset}))
    return result, preparation.artifact(result).data


@pytest.fixture
def chats(preparation: Preparation) -> Preparation:
    preparation.write("text/train.jsonl", *lines(*pairs()))
    preparation.write("text/validation.jsonl", *lines(*pairs(3, start=20)))
    return preparation


@pytest.mark.parametrize(("workers", "long"), [(1, False), (2, False), (1, True)])
def test_what_is_learned_is_the_completion_and_its_end(
    chats: Preparation, monkeypatch: pytest.MonkeyPatch, workers: int, long: bool
) -> None:
    monkeypatch.setattr("compression_pipeline.text.tokenize.SMALL_TEXT", 0)
    if long:
        monkeypatch.setattr("compression_pipeline.text.encode.LONG", 700)
        monkeypatch.setattr("compression_pipeline.text.parts._AROUND", 64)
    result, folder = take(chats, workers=workers)
    backend = Tokenizer.from_file(str(chats.artifact(result).model / "tokenizer.json"))
    documents, count = sorted(split(folder)), 0
    said = sorted(([*backend.encode(prompt + text).ids, 0], prompt, text) for prompt, text in pairs())
    assert [tokens for tokens, _ in documents] == [ids for ids, *_ in said], "the same as of plain text"
    for (tokens, mask), (_, prompt, text) in zip(documents, said, strict=True):
        first = mask.index(1)
        assert mask == [0] * first + [1] * (len(tokens) - first)
        read, taught = (backend.decode(part, skip_special_tokens=False) for part in (tokens[:first], tokens[first:]))
        assert taught.removesuffix(END).endswith(text) and prompt.startswith(read)
        longest = max(len(backend.decode([token])) for token in tokens)
        assert len(prompt) - len(read) < longest, "at most the token in which the completion begins"
        count += sum(mask)
    assert result.learned_tokens == count < result.train_tokens
    statistics = json.loads((folder / "statistics.json").read_text())
    assert statistics["splits"]["train"]["learned"] == count
    assert chats.artifact(result).manifest.result["learnedTokens"] == count
    chats.store.joinpath("artifacts", f"prepare-{result.key}", "data", "train.mask").write_bytes(b"\1")
    with pytest.raises(ValueError, match=r"train\.mask is for 1 tokens"):
        IndexedText(folder / "train")


SAID = [("Question: 2+2?\n", "4"), ("an", "swer"), ("é", "  spaces  "), ("", "all"), ("日本", "語\n"), ("a b ", "c")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_trls(kind: str) -> None:
    """TRL leaves out as many tokens as the prompt alone has, and warns where these are not those of the whole text."""
    backend, same = tokenizer(kind), 0
    for prompt, text in SAID:
        [encoded] = encodings_of(backend, [prompt + text], offsets=True)
        alone = ids_of(backend, [prompt])[0]
        mask = list(learned(encoded.offsets, ((len(prompt), len(prompt + text)),)))
        assert mask == sorted(mask) and mask[-1] == 1
        assert encoded.ids == ids_of(backend, [prompt + text])[0]
        if encoded.ids[: len(alone)] == alone and len(alone) < len(mask):
            same += 1
            assert mask.count(0) == len(alone)
    assert same >= 2


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.lists(st.integers(1, 6), max_size=6))
def test_several_spans_of_a_document_are_learned(tokens: list[int], gaps: list[int]) -> None:
    """As turns of a conversation will be: every other one."""
    bounds = np.cumsum([0, *tokens]).tolist()
    places = np.cumsum([0, *gaps]).tolist()
    spans = tuple(zip(places[0::2], places[1::2], strict=False))
    characters = {place for start, end in spans for place in range(start, end)}
    offsets = list(pairwise(bounds))
    assert list(learned(offsets, spans)) == [int(bool(characters & {*range(*one)})) for one in offsets]


def test_parquet_and_json_lines_are_the_same(chats: Preparation) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, plain = take(chats)
    for name, told in (("train", pairs()), ("validation", pairs(3, start=20))):
        path = chats.folder / "columns" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"completion": [text for _, text in told], "prompt": [one for one, _ in told]}), path)
    _, packed = take(chats, "file:columns")
    for name in ("train", "validation"):
        assert sorted(split(packed, name)) == sorted(split(plain, name))


def test_documents_are_held_out_with_their_mask(chats: Preparation) -> None:
    chats.write("all.jsonl", *lines(*pairs(30)))
    _, folder = take(chats, "file:all.jsonl", validationFraction=0.3)
    train, held = list(split(folder)), list(split(folder, "validation"))
    assert len(train) + len(held) == 30 and len(held) > 2
    assert all(0 < sum(mask) < len(mask) and mask == sorted(mask) for _, mask in train + held)


@pytest.mark.parametrize("long", [False, True])
def test_a_budget_cuts_the_mask_with_the_tokens(
    chats: Preparation, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    if long:
        monkeypatch.setattr("compression_pipeline.text.encode.LONG", 700)
        monkeypatch.setattr("compression_pipeline.text.parts._AROUND", 64)
    _, folder = take(chats)
    whole = IndexedText(folder / "train")
    assert whole.mask is not None
    in_prompt = int(np.flatnonzero(np.diff(whole.mask.astype(int)) == -1)[0]) + 20  # of the second document
    for tokens, end in ((in_prompt, 0), (in_prompt + 500, 1)):
        result, folder = take(chats, tokens=tokens)
        some = IndexedText(folder / "train")
        assert some.mask is not None and len(some.tokens) == tokens == result.train_tokens
        assert some.mask[:-1].tolist() == whole.mask[: tokens - 1].tolist()
        assert some.mask[-1] == end, "an end behind a prompt is not learned"
        assert result.learned_tokens == some.mask.sum()


def test_rows_without_a_completion_are_told_and_left_out(chats: Preparation) -> None:
    first, *others = pairs()
    _, plain = take(chats)
    chats.write("text/train.jsonl", *lines(first, ("read", None), ("read", " "), (None, ""), *others))
    _, folder = take(chats)
    assert sorted(split(folder)) == sorted(split(plain))
    [warning] = [one["message"] for one in chats.events("warning") if "nothing in" in one["message"]]
    path = chats.folder / "text" / "train.jsonl"
    assert warning == (
        f"3 rows of file:text have nothing in completion to learn and are left out; the first one is {path}:2"
    )
    chats.write("text/train.jsonl", *lines((None, "all of it is learned"), *others))
    _, folder = take(chats)
    assert [1] in [sorted({*mask}) for _, mask in split(folder)]


@pytest.mark.parametrize(
    ("written", "told", "said"),
    [
        (lines(("a", "b")), {"promptColumn": "question"}, "there is no column question; set dataset.promptColumn to"),
        (['{"completion": "b", "prompt": 5}'], {}, "prompt is no string (int); set dataset.promptColumn to a column"),
        ([*lines(("a", "b")), '{"completion": "b"}'], {}, "train.jsonl:2: the row has no prompt, as the rows before"),
        (lines(("a", ""), ("b", None)), {}, "has no token of completion in its split for train, so nothing to"),
        (lines(("one " * 60, "b")), {"tokens": 12}, "has no token of completion in its split for train, so nothing to"),
    ],
)
def test_what_is_wrong_names_the_field(chats: Preparation, written: list[str], told: dict[str, Any], said: str) -> None:
    chats.write("text/train.jsonl", *written)
    with pytest.raises(UserError) as caught:
        take(chats, **told)
    assert said in str(caught.value)


def test_text_files_have_no_prompts(chats: Preparation) -> None:
    chats.write("notes.txt", "all of it")
    with pytest.raises(UserError, match=r"^spec.dataset.promptColumn: .*notes.txt is a text file, which has no"):
        take(chats, "file:notes.txt")


def test_one_of_several_sources_may_have_prompts(chats: Preparation, corpora: Preparation) -> None:
    result = corpora.take(several(corpora, ONE, {"source": "file:text", "weight": 0.25, **COLUMNS}))
    folder = corpora.artifact(result).data
    plain, marked = (IndexedText(folder / name / "train") for name in ("0", "1"))
    assert plain.mask is None and marked.mask is not None
    assert [one.learned_tokens for one in result.resolved_sources] == [None, marked.mask.sum()]
    assert result.learned_tokens == len(plain.tokens) + marked.mask.sum()
    with pytest.raises(UserError, match=r"set dataset\.sources\[1\]\.promptColumn to"):
        corpora.take(several(corpora, ONE, {"source": "file:text", "weight": 0.25, **COLUMNS, "promptColumn": "a"}))


def test_prompts_are_read_and_no_default_key_knows_of_them(chats: Preparation) -> None:
    known, _ = take(chats)
    plain, folder = take(chats, promptColumn=None)
    assert plain.key != known.key and plain.learned_tokens is None
    assert not (folder / "train.mask").exists()
    assert plain.train_tokens < known.train_tokens
    assert "promptColumn" not in DatasetConfig(source="file:a").model_dump(by_alias=True, exclude_defaults=True)
