"""What names say of splits, and a tokenizer loaded without transformers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import END, texts, write_tokenizer

from compression_pipeline.config import DocumentFormat
from compression_pipeline.sources import splits
from compression_pipeline.text import documents
from compression_pipeline.text.tokenizer import load


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
        assert splits.by_readme(configs, names, None, "hf://x") == expected
    inside = [{"config_name": "one", "data_dir": "deep", "data_files": "*.jsonl"}]
    assert splits.by_readme(inside, names, None, "hf://x") == {"train": ["deep/b.jsonl"]}
    for silent in (None, [], "text", [{"config_name": "one"}]):
        assert splits.by_readme(silent, names, None, "hf://x") is None


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


@pytest.mark.parametrize(
    "change", ["plain", "begin token", "token told by the configuration only", "prefix space", "metaspace"]
)
def test_ids_are_those_of_transformers(tmp_path: Path, change: str) -> None:
    """Without special tokens, as Megatron's tokenizer asks for them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    match change:
        case "begin token":
            backend.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
            backend.enable_truncation(16)  # some files come with it; text is never cut
            told |= {"add_bos_token": True, "bos_token": END}
        case "token told by the configuration only":
            flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
            told["added_tokens_decoder"] = {"0": {"content": END, **flags}, "512": {"content": "<|more|>", **flags}}
        case "prefix space":
            told["add_prefix_space"] = True
        case "metaspace":
            backend = Tokenizer(models.BPE(unk_token=END, byte_fallback=True))
            backend.pre_tokenizer = pre_tokenizers.Metaspace()
            trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[END], show_progress=False)
            backend.train_from_iterator(texts(), trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = load(tmp_path)
    assert (ours.vocabulary, ours.end_of_document) == (len(theirs), theirs.eos_token_id)
    for text in [*texts()[:5], "a <|more|> b", f"x{END}y", " ünï 漢字 🎉\n\n\tz", ""]:
        found = ours.backend.encode(text, add_special_tokens=False).ids
        assert found == theirs.convert_tokens_to_ids(theirs.tokenize(text))
