"""The teacher's tokenizer, from tokenizer.json alone: importing transformers takes seconds.

Its ids are those of `transformers.AutoTokenizer(...)(text, add_special_tokens=False)`, which is what Megatron's
HuggingFaceTokenizer yields by default: no BOS, and an end-of-document token after each document.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_pipeline.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"


@dataclass(frozen=True)
class TeacherTokenizer:
    """A loaded tokenizer."""

    backend: "Tokenizer"
    vocabulary: int  # tokens, added ones included: len() of transformers' tokenizer
    end_of_document: int  # id of the EOS token


def load(folder: Path) -> TeacherTokenizer:
    """The tokenizer of a checkpoint's folder.

    Raises UserError where there is no tokenizer.json, it can't be read, or there is no end-of-text token.
    """
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if not path.is_file():
        raise UserError(
            f"{path} is missing; load the model's tokenizer once with transformers' AutoTokenizer and "
            "save_pretrained() it into the checkpoint"
        )
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise UserError(f"{path} can't be read ({error}); download it again") from error
    backend.no_truncation()
    backend.no_padding()
    told = _json(folder / CONFIG)
    _add_tokens(backend, told)
    _set_prefix_space(backend, told)
    end = _content(told.get("eos_token")) or _content(_json(folder / SPECIAL).get("eos_token"))
    if end is None:
        raise UserError(
            f'{folder / CONFIG} names no eos_token, which marks where a document ends; add it, e.g. "eos_token": "</s>"'
        )
    number = backend.token_to_id(end)
    if number is None:
        raise UserError(f"{folder / CONFIG}: eos_token {end!r} is no token of {TOKENIZER}; name one that is")
    return TeacherTokenizer(backend, backend.get_vocab_size(with_added_tokens=True), number)


def _add_tokens(backend: "Tokenizer", told: dict[str, Any]) -> None:
    """Tokens that only tokenizer_config.json lists; transformers adds them in the order of their ids."""
    from tokenizers import AddedToken

    listed = sorted((told.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0]))
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    known = backend.get_added_tokens_decoder()
    for number, token in listed:
        if int(number) not in known:
            backend.add_tokens([AddedToken(token["content"], **{f: bool(token[f]) for f in flags if f in token})])


def _set_prefix_space(backend: "Tokenizer", told: dict[str, Any]) -> None:
    """As transformers does: tokenizer_config.json's add_prefix_space wins over the pre-tokenizer's."""
    from tokenizers import pre_tokenizers

    if "add_prefix_space" not in told or backend.pre_tokenizer is None:
        return
    state = json.loads(backend.pre_tokenizer.__getstate__())
    if state.get("type") == "ByteLevel" and state.get("add_prefix_space") != told["add_prefix_space"]:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=bool(told["add_prefix_space"]),
            use_regex=state.get("use_regex", True),
            trim_offsets=state.get("trim_offsets", True),
        )


def _content(token: Any) -> str | None:
    """The text of a token, which these files tell as a string or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    return content if isinstance(content, dict) else {}
