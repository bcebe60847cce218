"""What the names of files say of splits: as `datasets` reads them, and told where a person may have meant otherwise."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preparing import Preparation, rows
from tiny import texts

from compression_pipeline.config import DatasetConfig
from compression_pipeline.errors import UserError
from compression_pipeline.sources import splits

DATASET = DatasetConfig(source="file:data")


def in_a_folder(names: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split, as `datasets` finds them in a folder."""
    from datasets.data_files import get_data_patterns, resolve_pattern

    with tempfile.TemporaryDirectory() as made:
        base = Path(made).resolve()
        for name in names:
            path = base / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

        def resolve(pattern: str) -> list[str]:
            return [Path(path).relative_to(base).as_posix() for path in resolve_pattern(pattern, str(base))]

        return _files(get_data_patterns(str(base)), resolve)


def by_the_library(names: Sequence[str]) -> dict[str, list[str]]:
    """The same by the library's rules over names alone, which is a thousand times as fast."""
    from datasets.data_files import _get_data_files_patterns
    from fsspec.utils import glob_translate

    def resolve(pattern: str) -> list[str]:
        found = [name for name in names if re.match(glob_translate(pattern), name)]
        if not found:
            raise FileNotFoundError(pattern)
        return found

    return _files(_get_data_files_patterns(resolve), resolve)


def _files(patterns: Mapping[Any, Sequence[str]], resolve: Callable[[str], list[str]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for split, told in patterns.items():
        for pattern in told:
            with suppress(FileNotFoundError):
                found.setdefault(str(split), set()).update(resolve(pattern))
    return {split: sorted(files) for split, files in found.items()}


LAYOUTS = [
    (["train.jsonl", "validation.jsonl", "test.jsonl"], {"train": 1, "validation": 1, "test": 1}),
    (["a.txt", "b.txt"], {"train": 2}),
    (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], {"train": 2}),
    (["data/train-00000-of-00001-b42a775f407cee45.parquet", "data/validation-00000-of-00001-869c898b519ad725.parquet"],
     {"train": 1, "validation": 1}),
    (["train-00000-of-00001-b42a775f407cee45.parquet", "test-00000-of-00001-0c1d.parquet"], {"train": 1, "test": 1}),
    (["my_train_file_00.jsonl", "my_train_file_01.jsonl", "my_test_file_00.jsonl"], {"train": 2, "test": 1}),
    (["train_stories.txt", "valid_stories.txt"], {"train": 1, "validation": 1}),
    (["corpus_train_clean.jsonl", "corpus_dev_clean.jsonl"], {"train": 1, "validation": 1}),
    (["train.en.txt", "validation.en.txt"], {"train": 1, "validation": 1}),
    (["data-train/a.jsonl", "data-validation/a.jsonl"], {"train": 1, "validation": 1}),
    (["train/a.jsonl", "train/test.jsonl", "dev/a.jsonl"], {"train": 2, "validation": 1}),
    (["c4-train.00000-of-01024.json.gz", "c4-validation.00000-of-00008.json.gz"], {"train": 1, "validation": 1}),
    (["wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"], {"train": 1, "validation": 1, "test": 1}),
    (["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"], {"train": 2}),
    (["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"],
     {"train_sft": 1, "test_sft": 1}),
    (["training/a.jsonl", "testing_1/b.jsonl"], {"train": 1, "test": 1}),
    (["train.jsonl", "notes.txt"], {"train": 1}),
    (["train/a.jsonl", "validation.jsonl"], {"train": 1}),  # folders tell, so names of files don't
    (["Train.jsonl", "TEST.jsonl", "contest.txt"], {"train": 3}),  # words are in lower case
]  # fmt: skip


@pytest.mark.parametrize(("names", "expected"), LAYOUTS)
def test_splits_by_name(names: list[str], expected: dict[str, int]) -> None:
    assert {split: len(files) for split, files in splits.by_name(names).items()} == expected
    assert in_a_folder(names) == by_the_library(names) == splits.by_name(names)


WORD = st.sampled_from(["train", "training", "valid", "dev", "val", "test", "eval", "Test", "data", "part", "x"])
PART = st.lists(st.one_of(WORD, st.sampled_from(["-", ".", "_", " ", "0", "12", "s", "é"])), min_size=1, max_size=5)
SHARD = st.builds("{}-{:05d}-of-00003{}".format, WORD, st.integers(0, 2), st.sampled_from(["", "-b42a", "_x"]))
STEM = st.one_of(PART.map("".join), SHARD)
FOLDERS = st.lists(st.one_of(st.just("data"), PART.map("".join)), max_size=2)
ENDING = st.sampled_from([".txt", ".jsonl", ".jsonl.gz", ".parquet"])
NAME = st.builds(lambda folders, stem, ending: "/".join([*folders, stem + ending]), FOLDERS, STEM, ENDING)


def _can_lie_together(names: list[str]) -> bool:
    parts = [part for name in names for part in name.split("/")]
    folders = {name[:end] for name in names for end, sign in enumerate(name) if sign == "/"}
    return not folders & set(names) and not any(part.startswith(".") or part.strip(". ") == "" for part in parts)


@given(st.lists(NAME, min_size=1, max_size=5, unique=True).filter(_can_lie_together))
def test_splits_are_those_of_datasets(names: list[str]) -> None:
    """With one exception: files that tell no split are for training where no file's name says train."""
    ours = splits.by_name(names)
    assert splits.by_name(list(reversed(names))) == ours
    theirs = by_the_library(names)
    if "train" not in theirs and "train" in ours:
        assert ours.pop("train") == sorted(set(names) - {name for files in theirs.values() for name in files})
    assert ours == theirs


@pytest.mark.parametrize(
    ("names", "extra", "expected"),
    [
        (["a.jsonl", "held_out.jsonl"], ["train", "held_out"], {"train": ["a.jsonl"], "held_out": ["held_out.jsonl"]}),
        (["train.jsonl", "dev.jsonl"], ["train", "dev"], {"train": ["train.jsonl"], "dev": ["dev.jsonl"]}),
        (["learn.jsonl", "test.jsonl"], ["learn", "test"], {"learn": ["learn.jsonl"], "test": ["test.jsonl"]}),
        (["sft/a.jsonl", "raw/b.jsonl"], ["sft"], {"train": ["raw/b.jsonl"], "sft": ["sft/a.jsonl"]}),
        (["data/train-00000-of-00001.parquet"], ["dev"], {"train": ["data/train-00000-of-00001.parquet"]}),
    ],
)
def test_a_split_that_the_manifest_names_is_a_word_too(
    names: list[str], extra: list[str], expected: dict[str, list[str]]
) -> None:
    assert splits.by_name(names, extra) == expected


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.txt", "b.txt"], []),
        (["train.txt", "validation.txt"], []),
        (["data/train_sft-00000-of-00001.parquet", "data/test_sft-00000-of-00001.parquet"], []),
        (["train.jsonl", "notes.jsonl"], ["1 files are not used"]),
        (
            ["corpus.jsonl", "test.jsonl"],
            ["1 files are trained on although their names give no split and other files' names do"],
        ),
        (["train/a.jsonl", "train/test.jsonl"], ["the first: train/test.jsonl, which holds test)"]),
        (["a.jsonl", "MyTestSet.jsonl"], ["the first: MyTestSet.jsonl, which holds test)"]),
        (["a.jsonl", "Validation/b.jsonl"], ["the first: Validation/b.jsonl, which holds validation)"]),
        (["train_test.jsonl"], ["the first: train_test.jsonl, which holds test)"]),
        (["contest.txt", "developers.txt", "retrained.txt"], []),
    ],
)
def test_what_a_person_may_have_meant_otherwise_is_told(names: list[str], said: list[str]) -> None:
    found = list(splits.warnings(names, splits.by_name(names), DATASET))
    assert len(found) == len(said)
    assert all(part in sentence for part, sentence in zip(said, found, strict=True))


def test_what_is_trained_on_is_not_validated_on() -> None:
    found = splits.by_name(["train.jsonl", "train_dev.jsonl"])
    with pytest.raises(UserError, match=r"train_dev\.jsonl tells two splits by its name, train and validation"):
        splits.wanted(found, DATASET, "x")


def test_files_that_are_no_part_of_the_text(preparation: Preparation) -> None:
    preparation.write("data/corpus.jsonl", *rows(*texts()[:30]))
    for name in ("LICENSE.txt", "requirements.txt", "config.json", "summary.json", "__MACOSX/corpus.jsonl"):
        preparation.write(f"data/{name}", "{}")
    assert preparation.run("file:data").documents == 30
    [warning] = preparation.events("warning")
    left = "LICENSE.txt, __MACOSX/corpus.jsonl, config.json, requirements.txt, summary.json"
    assert f"5 files are not read, because they do not look like a part of the text: {left}" in warning["message"]
    preparation.write("data/poem.txt", "One more text.")
    assert preparation.run("file:data").documents == 31
    kinds = preparation.events("warning")[1]["message"]
    assert (
        "1 files are of another kind than most of the text (JSON Lines), and are read as text, too: poem.txt" in kinds
    )
    assert preparation.run("file:data/*.jsonl").documents == 30
    assert preparation.events("warning") == []
    for name, text in zip(("data/LICENSE.txt", "data/NOTICE.txt"), texts(), strict=False):
        preparation.write(name, text)
    assert preparation.run("file:data/*E.txt").documents == 2, "where there is nothing else"
