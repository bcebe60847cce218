"""Folders with a tokenizer, each changed in a way that published ones are."""

import json
from pathlib import Path
from typing import Any

from tiny import CONFIG, END, write_tokenizer

FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
ROWS = 512
"""Tokens of the tokenizer, and rows of the embedding."""


def write_folder(folder: Path) -> Path:
    """config.json and a tokenizer of `ROWS` tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": ROWS}))
    write_tokenizer(folder, ROWS)
    return folder


def edit(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file's object; `...` takes one out."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    content |= fields
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def tell(folder: Path, **fields: Any) -> None:
    """As `edit`, of tokenizer_config.json."""
    edit(folder / "tokenizer_config.json", **fields)


def with_a_gap(folder: Path, number: int = 66_000) -> None:
    """Give the end-of-text token an id far above all others."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"][END] = number
    next(token for token in content["added_tokens"] if token["content"] == END)["id"] = number
    path.write_text(json.dumps(content))


def made_by_transformers_5(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink()
    tell(folder, tokenizer_class="TokenizersBackend", backend="tokenizers", is_local=True, extra_special_tokens=[END])


def with_code(folder: Path) -> None:
    tell(folder, tokenizer_class="MyTokenizer", auto_map={"AutoTokenizer": ["tokenization_my.MyTokenizer", None]})
    (folder / "tokenization_my.py").write_text("raise SystemExit('code of a checkpoint was run')")


def with_code_beside_a_known_class(folder: Path) -> None:
    tell(folder, auto_map={"AutoTokenizer": [None, "tokenization_my.MyTokenizer"]})
    (folder / "tokenization_my.py").write_text("raise SystemExit('code of a checkpoint was run')")


def with_a_null_begin(folder: Path) -> None:
    (folder / "special_tokens_map.json").unlink()
    tell(folder, tokenizer_class="LlamaTokenizer", bos_token=None)


def with_a_prefix_space(folder: Path) -> None:
    tell(folder, tokenizer_class="LlamaTokenizer", add_prefix_space=True, add_bos_token=True, bos_token=END)


def of_another_machine(folder: Path) -> None:
    tell(folder, tokenizer_file="/home/someone/tokenizer.json", name_or_path="/home/someone")


def without_a_file(folder: Path) -> None:
    tell(folder, tokenizer_file=None, vocab_file=None)


def with_untyped_tokens(folder: Path) -> None:
    tell(folder, eos_token={"content": END, **FLAGS}, additional_special_tokens=[{"content": END, **FLAGS}])


def that_is_slow(folder: Path) -> None:
    tell(folder, tokenizer_class="ByT5Tokenizer")


def of_a_wrong_kind(folder: Path) -> None:
    tell(folder, tokenizer_class=5)


NEED_A_CHANGE = (
    made_by_transformers_5,
    with_code,
    with_code_beside_a_known_class,
    with_a_null_begin,
    with_a_prefix_space,
    of_another_machine,
    without_a_file,
    with_untyped_tokens,
    that_is_slow,
    of_a_wrong_kind,
)
"""What plain transformers can't load, or not without asking whether it may run code, though tokenizer.json is whole."""
