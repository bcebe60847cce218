"""prepare of several sources: each as one alone, with its weight."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from preparing import FINGERPRINT, Preparation, rows
from tiny import texts

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    DatasetConfig,
    PrepareJob,
    PrepareResult,
    ResolvedSource,
    ResolvedText,
    text_fault,
)
from compression_pipeline.errors import UserError
from compression_pipeline.report.card import source_rows
from compression_pipeline.text import mixture


def several(preparation: Preparation, *sources: dict[str, Any], **dataset: Any) -> PrepareJob:
    job = preparation.job("file:one")
    told = {"sources": [*sources], "sequenceLength": 8} | dataset
    return PrepareJob.model_validate({**job.to_json(), "dataset": told})


@pytest.fixture
def corpora(preparation: Preparation) -> Preparation:
    preparation.write("one/train.jsonl", *rows(*texts()[:30]))
    preparation.write("one/validation.jsonl", *rows(*texts()[30:40]))
    preparation.write("blank.jsonl", *(json.dumps({"body": " "}) for _ in range(2)))
    preparation.write("two/a.jsonl", *(json.dumps({"body": text}) for text in texts()[40:60]))
    return preparation


ONE = {"source": "file:one", "weight": 0.75}
TWO = {"source": "file:two", "weight": 0.25, "textColumn": "body", "validationFraction": 0.2}


def data(preparation: Preparation, result: PrepareResult) -> Path:
    return preparation.artifact(result).data


def test_each_source_is_tokenized_as_it_would_be_alone(corpora: Preparation) -> None:
    result = corpora.take(several(corpora, ONE, TWO))
    assert result.resolved_dataset is None
    folder = data(corpora, result)
    found = [(part.source, part.weight) for part in mixture.parts(folder)]
    assert found == [("dataset.sources[0]", 0.75), ("dataset.sources[1]", 0.25)]
    told = (folder / "mixture.json").read_text() + (folder / "statistics.json").read_text()
    assert "file:" not in told, "another run may find the same texts in other places"
    alone = [corpora.run("file:one"), corpora.run("file:two", textColumn="body", validationFraction=0.2)]
    for part, told, single in zip(mixture.parts(folder), result.resolved_sources, alone, strict=True):
        own = data(corpora, single)
        for name in ("train.bin", "train.idx", "validation.bin", "validation.idx"):
            assert (part.folder / name).read_bytes() == (own / name).read_bytes()
        assert single.resolved_dataset is not None
        assert (told.source, told.digest) == (single.resolved_dataset.source, single.resolved_dataset.digest)
        assert (told.train_tokens, told.validation_tokens) == (single.train_tokens, single.validation_tokens)
    assert result.train_tokens == sum(single.train_tokens for single in alone)
    assert result.documents == 60
    statistics = json.loads((folder / "statistics.json").read_text())
    assert statistics["sources"][0]["splits"]["train"]["documents"] == 30


def test_the_same_sources_are_found_again_and_other_weights_make_another_artifact(corpora: Preparation) -> None:
    first = corpora.take(several(corpora, ONE, TWO))
    again = corpora.take(several(corpora, ONE, TWO))
    assert again == first.model_copy(update={"cached": True})
    adopted = Store(corpora.store).find_published("prepare", FINGERPRINT)
    assert adopted is not None
    assert [one["source"] for one in adopted.manifest.result["resolvedSources"]] == ["file:one", "file:two"]
    other = corpora.take(several(corpora, {**ONE, "weight": 0.5}, {**TWO, "weight": 0.5}))
    assert other.key != first.key and not other.cached


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"textColumn": "text"}, "there is no column text; set dataset.sources[1].textColumn to body"),
        ({"source": "file:three"}, "spec.dataset.sources[1].source: file:three"),
        (
            {"source": "file:blank.jsonl"},
            "spec.dataset.sources[1].source: file:blank.jsonl is empty: it has no document",
        ),
        ({"trainSplit": "all"}, "has no split all; set dataset.sources[1].trainSplit to one of its splits: train"),
    ],
)
def test_what_is_wrong_with_one_source_names_its_own_fields(
    corpora: Preparation, second: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        corpora.take(several(corpora, ONE, TWO | second))
    assert said in str(caught.value)


def test_each_source_has_a_sequence_of_each_split() -> None:
    dataset = DatasetConfig.model_validate({"sources": [ONE, TWO], "sequenceLength": 64})
    found = [
        ResolvedText(source=source, digest="", weight=0.5, train_tokens=900, validation_tokens=tokens)
        for source, tokens in (("file:one", 65), ("file:two", 64))
    ]
    said = text_fault(dataset, train_tokens=1800, validation_tokens=129, trainings={}, sources=found)
    assert said is not None
    assert said.startswith("dataset.sources[1].source: file:two has 64 tokens of validation text, fewer than one")
    assert said.endswith("(dataset.sources[1].validationFraction)")
    bounded = dataset.model_copy(update={"tokens": 200})
    said = text_fault(bounded, train_tokens=1800, validation_tokens=129, trainings={}, sources=found)
    assert said is not None and "give more text or raise dataset.tokens" in said


def test_two_sources_in_the_same_place_keep_their_weights_on_the_card() -> None:
    found = [
        ResolvedText(source="hf://a/wiki", digest=digest, weight=weight, train_tokens=9, validation_tokens=9)
        for digest, weight in (("english", 0.7), ("german", 0.3))
    ]
    teacher = ResolvedSource(source="hf://a/teacher", digest="t")
    rows = source_rows(cast(Any, SimpleNamespace(resolved_teacher=teacher, resolved_sources=found)))
    assert [(row[0], row[-1]) for row in rows[1:]] == [("Data (0.7)", "`english`"), ("Data (0.3)", "`german`")]
