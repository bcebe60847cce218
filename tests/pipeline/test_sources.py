"""What names say of splits, and a tokenizer loaded without transformers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression_pipeline.config import DatasetConfig, DocumentFormat
from compression_pipeline.sources import readme
from compression_pipeline.text import documents

DATASET = DatasetConfig(source="hf://x")


def test_a_readme_may_tell_files_in_several_forms() -> None:
    names = ["a.jsonl", "deep/b.jsonl", "deep/er/c.jsonl", "x.txt"]
    for files, expected in (
        ("*.jsonl", {"train": ["a.jsonl"]}),
        ("**/*.jsonl", {"train": ["a.jsonl", "deep/b.jsonl", "deep/er/c.jsonl"]}),
        (["a.jsonl", "x.txt"], {"train": ["a.jsonl", "x.txt"]}),
        ({"train": "deep/*.jsonl", "test": ["a.jsonl"]}, {"train": ["deep/b.jsonl"], "test": ["a.jsonl"]}),
        ([{"split": "train", "path": "deep/**"}], {"train": ["deep/b.jsonl", "deep/er/c.jsonl"]}),
    ):
        configs = [{"config_name": "one", "data_files": files}]
        assert readme.files_of(configs, names, DATASET, "hf://x") == expected
    inside = [{"config_name": "one", "data_dir": "deep", "data_files": "*.jsonl"}]
    assert readme.files_of(inside, names, DATASET, "hf://x") == {"train": ["deep/b.jsonl"]}
    for silent in (None, [], "text", [{"config_name": "one"}]):
        assert readme.files_of(silent, names, DATASET, "hf://x") is None


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        (" = Title = \n", True),
        ("= Title =", True),
        (" = A = B = ", True),
        (" = = Section = = \n", False),
        (" = = = Deeper = = = ", False),
        ("== Section ==", False),
        (" where x = 3 ", False),
        (" = ", False),
        ("", False),
    ],
)
def test_headings_of_articles(line: str, heading: bool) -> None:
    found = list(documents.wikitext_articles(["text", line, "more"]))
    assert len(found) == (2 if heading else 1)


@given(st.lists(st.sampled_from(["", " = A = ", " = B = ", " = = C = = ", " text ", "\n"])))
def test_articles_keep_every_line_and_its_order(lines: list[str]) -> None:
    joined = [line for text in documents.wikitext_articles(lines) for line in text.split("\n") if line]
    assert joined == [line for line in lines if line.strip("\n")]


WIKITEXT = [
    "",
    " = Valkyria Chronicles III = \n",
    "",
    " A role @-@ playing game . \n",
    " = = Gameplay = = \n",
    " More . \n",
]


@pytest.mark.parametrize(
    ("lines", "articles"),
    [
        (WIKITEXT, True),
        ([line.rstrip("\n") for line in WIKITEXT], True),
        (WIKITEXT[:2], True),
        (["= Title =\n", "Text of a wiki in another form.\n"], False),
        ([" = Title = \n", "Text that begins without a space.\n"], False),
        ([" = Title = \n the whole article in one row \n"], False),
        ([" = = Section = = \n", " text \n"], False),
        (["About WikiText: = Title = stands for a heading.\n"], False),
        ([], False),
    ],
)
def test_auto_looks_at_the_text(lines: list[str], articles: bool) -> None:
    found = documents.detect(lines)
    assert found is (DocumentFormat.WIKITEXT_ARTICLES if articles else DocumentFormat.ROWS)
