"""The `configs` of a folder's README: what they tell is what `datasets` makes of them, or is refused by name."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import Preparation, rows
from tiny import texts

from compression_pipeline.config import DatasetConfig
from compression_pipeline.errors import UserError
from compression_pipeline.sources import readme

DATASET = DatasetConfig(source="file:data")
NAMES = ("a.jsonl", "b.jsonl", "c d.txt", "en/train.jsonl", "en/dev.jsonl", "en/deep/x.jsonl", "de/part-0.jsonl",
         "de/part-1.jsonl", "data/held/y.jsonl", "__raw/z.jsonl", "notes.md", "LICENSE", "config.json")  # fmt: skip


def by_the_library(configs: list[dict[str, Any]], name: str) -> dict[str, list[str]]:
    """The files of each split of a configuration, as `datasets` finds them in a folder."""
    from datasets.load import LocalDatasetModuleFactory
    from datasets.utils.file_utils import xjoin

    with tempfile.TemporaryDirectory() as made:
        base = Path(made).resolve()
        for file in NAMES:
            (base / file).parent.mkdir(parents=True, exist_ok=True)
            (base / file).touch()
        (base / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n# Data\n")
        module = LocalDatasetModuleFactory(str(base)).get_module()
        told = module.builder_configs_parameters.builder_configs or []
        [config] = [one for one in told if one.name == name]
        inside = xjoin(str(base), config.data_dir) if config.data_dir else str(base)
        patterns: Any = config.data_files
        found = patterns.resolve(inside)
        return {
            str(split): [Path(file).relative_to(base).as_posix() for file in files]
            for split, files in found.items()
            if files
        }


def ours(configs: list[dict[str, Any]], name: str | None = None) -> dict[str, list[str]] | None:
    found = readme.files_of(configs, NAMES, DATASET.model_copy(update={"config": name}), "file:data")
    return None if found is None else {split: files for split, files in found.items() if files}


FORMS: list[dict[str, Any]] = [
    {"data_files": "*.jsonl"},
    {"data_files": ["a.jsonl", "en/*.jsonl"]},
    {"data_files": [{"split": "train", "path": "de/*.jsonl"}, {"split": "validation", "path": "en/dev.jsonl"}]},
    {"data_files": [{"split": "train", "path": ["a.jsonl", "b.jsonl"]}, {"split": "held", "path": "data/held/*"}]},
    {"data_files": "**/*.jsonl"},
    {"data_files": "en/**"},
    {"data_files": "de/part-[01].jsonl"},
    {"data_files": "?.jsonl"},
    {"data_files": "./a.jsonl"},
    {"data_files": "c d.txt"},
    {"data_files": "*"},
    {"data_files": "__raw/*.jsonl"},
    {"data_files": ["nothing*.jsonl", "a.jsonl"]},
    {"data_dir": "en"},
    {"data_dir": "en", "data_files": "*.jsonl"},
    {"data_dir": "de", "data_files": [{"split": "train", "path": "part-0.jsonl"}]},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_each_form_is_read_as_the_library_reads_it(form: dict[str, Any]) -> None:
    configs = [{"config_name": "other", "data_files": "b.jsonl"}, {"config_name": "one", **form}]
    assert ours(configs, "one") == by_the_library(configs, "one")


PATTERN = st.builds(
    "{}{}".format, st.sampled_from(["", "en/", "*/", "**/", "de/", "./", "__raw/"]),
    st.sampled_from(["*.jsonl", "a.jsonl", "*", "**", "part-?.jsonl", "[a-c].jsonl", "*e*", "x.jsonl", "*.txt"]),
)  # fmt: skip
SPLIT = st.fixed_dictionaries(
    {"split": st.sampled_from(["train", "validation", "held_out"]), "path": PATTERN | st.lists(PATTERN, min_size=1)}
)
FILES = PATTERN | st.lists(PATTERN, min_size=1, max_size=3) | st.lists(
    SPLIT, min_size=1, max_size=3, unique_by=lambda one: str(one["split"])
)  # fmt: skip
CONFIG = st.fixed_dictionaries({"data_files": FILES}, optional={"data_dir": st.sampled_from(["en", "de", "data"])})


@settings(max_examples=40, deadline=None)
@given(CONFIG)
def test_what_is_told_is_what_the_library_finds(config: dict[str, Any]) -> None:
    configs = [{"config_name": "first", "data_files": "a.jsonl"}, {"config_name": "one", **config}]
    try:
        found = ours(configs, "one")
    except UserError as error:
        assert "there is no such file" in str(error)
        with pytest.raises(FileNotFoundError):
            by_the_library(configs, "one")
    else:
        assert found == by_the_library(configs, "one")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"data_files": "gone.jsonl"}, "README.md names gone.jsonl, and there is no such file"),
        ({"data_files": "../other/*.jsonl"}, "README.md names ../other/*.jsonl, which lies outside of the dataset"),
        ({"data_files": "/etc/passwd"}, "README.md names /etc/passwd, which lies outside"),
        ({"data_files": "hf://datasets/o/d/a.jsonl"}, "names hf://datasets/o/d/a.jsonl, which lies outside"),
        ({"data_files": "**.jsonl"}, "README.md names **.jsonl, which is no pattern"),
        ({"data_files": "a.jsonl", "field": "rows"}, "README.md has field in its configuration one, which is not sup"),
        ({"data_files": "a.jsonl", "sample_by": "line"}, "README.md has sample_by in its configuration one"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        ours([{"config_name": "one", **entry}])
    assert str(raised.value).startswith("file:data: ") and said in str(raised.value)


def folder(preparation: Preparation, header: str) -> None:
    preparation.write("data/README.md", "---", header, "---", "# Data")
    preparation.write("data/small/a.jsonl", *rows(*texts()[:4]))
    preparation.write("data/small/train.jsonl", *rows(*texts()[4:8]))
    preparation.write("data/check.jsonl", *rows(*texts()[8:10]))
    preparation.write("data/large.jsonl", *rows(*texts()[:30]))
    preparation.write("data/table.csv", "text")


TWO = """
configs:
- config_name: small
  data_files:
  - {split: train, path: "small/*.jsonl"}
  - {split: validation, path: check.jsonl}
- config_name: large
  data_files: large.jsonl
- config_name: table
  data_files: table.csv
"""


@pytest.mark.parametrize("source", ["file:data", "pvc://claim/data"])
def test_prepare_takes_the_configuration_that_is_named(preparation: Preparation, source: str) -> None:
    folder(preparation, TWO)
    (preparation.folder / "volume").symlink_to(preparation.folder)
    small = preparation.run(source, config="small")
    assert (small.documents, preparation.events("warning")) == (10, [])
    assert preparation.run(source, config="large").documents == 30
    for told, said in (
        ({}, "has several configurations; set dataset.config to one of small, large, table"),
        ({"config": "huge"}, "has no configuration huge; set dataset.config to one of small, large, table"),
        ({"config": "table"}, "table.csv, which README.md names for the split train, is of an unsupported type"),
        ({"config": "large", "validationSplit": "check"}, "has no split check; set dataset.validationSplit"),
    ):
        with pytest.raises(UserError) as raised:
            preparation.run(source, **told)
        assert said in str(raised.value)


def test_where_no_readme_tells_names_do_and_no_configuration_is_there(preparation: Preparation) -> None:
    folder(preparation, "license: mit")
    (preparation.folder / "data/table.csv").unlink()
    assert preparation.run("file:data", trainSplit="train").documents == 4
    for source in ("file:data", "file:data/*.jsonl", "file:data/large.jsonl"):
        with pytest.raises(UserError, match=r"has no configuration small: no README\.md in that folder has configs"):
            preparation.run(source, config="small")
    preparation.write("data/README.md", "---", "configs: [", "---")
    with pytest.raises(UserError, match=r"the header of README\.md is no YAML, and it has configs"):
        preparation.run("file:data")


def test_an_edit_of_the_readme_is_seen(preparation: Preparation) -> None:
    folder(preparation, TWO)
    assert preparation.run("file:data", config="small").documents == 10
    preparation.write("data/README.md", "---", TWO.replace("small/*", "small/a"), "---")
    assert preparation.run("file:data", config="small").documents == 6
