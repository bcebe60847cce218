"""The tokenizer of a checkpoint as plain transformers loads it: the one place that says which ids a text has.

What `AutoTokenizer` makes of a folder depends on four files, on the class and on that class's defaults. So the library
itself is asked, and never a second reading of those files. Where it can't load them as they came, the fewest changes to
tokenizer_config.json are looked for with which it can: users of the students have this very library, and nothing else.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from compression_pipeline.errors import UserError
from compression_pipeline.text.tokenizer import TeacherTokenizer

from .layout import CONFIG as MODEL_CONFIG
from .layout import parse

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
ADDED = "added_tokens.json"

TEMPLATES = "additional_chat_templates"
"""Folder of the chat templates that have names."""

TOKENIZER_FILES = (
    TOKENIZER,
    CONFIG,
    SPECIAL,
    ADDED,
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.json",
    "chat_template.jinja",
    f"{TEMPLATES}/*.jinja",
)
"""Files of a checkpoint that are its tokenizer's, as patterns of names."""

SIZE_LIMIT = 256 * 1024**2
"""Bytes that one of the files may have; the largest one that is published has 35 MB."""

_Config = Mapping[str, Any]

_OUT: Any = object()
"""In place of a value: the key goes."""

_ANY_CLASS = "PreTrainedTokenizerFast"
"""The class that takes any tokenizer.json for what it is."""

_ELSEWHERE = (
    "auto_map",
    "fast_tokenizer_files",
    "from_slow",
    "gguf_file",
    "init_inputs",
    "merges_file",
    "tokenizer_file",
    "tokenizer_object",
    "vocab_file",
)
"""Keys of tokenizer_config.json that lead away from tokenizer.json: to code, to other files, to sentencepiece."""

_SPECIAL_TOKENS = (
    "additional_special_tokens",
    "bos_token",
    "cls_token",
    "eos_token",
    "mask_token",
    "pad_token",
    "sep_token",
    "unk_token",
)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer, and the tokenizer_config.json with which plain transformers loads it."""

    tokenizer: TeacherTokenizer
    config: _Config | None = None  # where it is not the folder's own
    changes: str = ""  # one sentence that says why, and what is changed


@dataclass(frozen=True)
class _Failure:
    """Why there is no tokenizer."""

    reason: str
    sentence: str = ""  # the whole of it, where it is none of transformers' own faults
    named: bool = False  # whether a file says so, and not a default of the class


def load(folder: Path, rows: int) -> LoadedTokenizer:
    """The tokenizer of a checkpoint's folder whose embedding has this many rows.

    Nothing but `TOKENIZER_FILES` and config.json is looked at. Raises UserError, naming the file, for whatever is wrong
    with them, and where a token is outside of the embedding.
    """
    told = _read(folder)
    with tempfile.TemporaryDirectory(prefix="compression-tokenizer-") as scratch:
        return _Loader(folder, told, rows, Path(scratch)).run()


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON files, each with its object; the chat templates are only seen to be text."""
    if not (folder / TOKENIZER).is_file():
        raise UserError(
            f"{folder / TOKENIZER} is missing; load the model's tokenizer once with transformers' AutoTokenizer and "
            "save_pretrained() it into the checkpoint"
        )
    for path in (folder / "chat_template.jinja", *sorted((folder / TEMPLATES).glob("*.jinja"))):
        _text(path)
    return {name: _object(folder / name) for name in (TOKENIZER, CONFIG, SPECIAL, ADDED)}


def _bytes(path: Path) -> bytes:
    """What is in a file; nothing where there is none."""
    if not path.is_file():
        return b""
    size = path.stat().st_size
    if size > SIZE_LIMIT:
        raise UserError(f"{path} has {size:,} bytes, more than {SIZE_LIMIT:,}; use the file of the model's source")
    return path.read_bytes()


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); download it again") from None


def _object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; an empty one where there is no file."""
    return parse(_bytes(path), str(path)) if path.is_file() else {}


class _Loader:
    """Tries versions of a folder's tokenizer in a folder of links."""

    def __init__(self, folder: Path, told: Mapping[str, _Config], rows: int, scratch: Path) -> None:
        self._folder = folder
        self._told = told
        self._rows = rows
        self._scratch = scratch
        for pattern in (*TOKENIZER_FILES, MODEL_CONFIG):
            for path in folder.glob(pattern):
                if path.is_file():
                    target = scratch / path.relative_to(folder)
                    target.parent.mkdir(exist_ok=True)
                    target.symlink_to(path.resolve())

    def run(self) -> LoadedTokenizer:
        found, config, failures = self._search({})
        if found is None:
            raise UserError(self._sentence(failures))
        found = replace(found, file=self._folder / TOKENIZER)
        if config == self._told[CONFIG]:
            return LoadedTokenizer(found)
        return LoadedTokenizer(found, config, self._changes(config, failures))

    def _search(self, instead: Mapping[str, _Config]) -> tuple[TeacherTokenizer | None, _Config, list[_Failure]]:
        """The first version that loads, with the contents of some files replaced, and why those before it don't."""
        failures: list[_Failure] = []
        for config in _candidates(self._told[CONFIG], self._told[TOKENIZER]):
            found = self._attempt({CONFIG: config, **instead})
            if isinstance(found, TeacherTokenizer):
                return found, config, failures
            failures.append(found)
        return None, {}, failures

    def _attempt(self, instead: Mapping[str, _Config]) -> TeacherTokenizer | _Failure:
        """The tokenizer that transformers loads with these contents of files.

        It is used as export and the model card use it: what only fails then has failed here.
        """
        from transformers import AutoTokenizer

        for name, content in instead.items():
            (self._scratch / name).unlink(missing_ok=True)  # never through a link
            (self._scratch / name).write_text(json.dumps(content), encoding="utf-8")
        try:
            theirs = AutoTokenizer.from_pretrained(self._scratch, local_files_only=True, trust_remote_code=False)
            if not theirs.is_fast:
                return _Failure(f"{type(theirs).__name__} does not use {TOKENIZER}")
            theirs.decode(theirs("a b", return_token_type_ids=False)["input_ids"], skip_special_tokens=True)
            if theirs.eos_token_id is None:
                return self._no_end()
            found = TeacherTokenizer.of(theirs, self._scratch / TOKENIZER)
            return found if found.largest < self._rows else self._beyond(theirs, found.largest)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the Rust library is no Exception
            said = f"{type(error).__name__}: {error}".replace(str(self._scratch), str(self._folder))
            return _Failure(" ".join(said.split())[:300])

    def _no_end(self) -> _Failure:
        reason = "names no eos_token, which marks where a document ends"
        return _Failure(reason, f'{self._folder / CONFIG} {reason}; add it, e.g. "eos_token": "</s>"')

    def _beyond(self, theirs: Any, number: int) -> _Failure:
        token = theirs.convert_ids_to_tokens(number)
        spelled = (json.dumps(token), json.dumps(token, ensure_ascii=False))
        texts = {name: _text(self._folder / name) for name in (TOKENIZER, CONFIG, SPECIAL, ADDED)}
        where = next((name for name, text in texts.items() if any(one in text for one in spelled)), None)
        reason = f"token id {number} ({token!r}) is outside of the model's embedding of {self._rows} rows"
        return _Failure(
            reason,
            f"{self._folder / (where or CONFIG)}: {reason} (vocab_size); use the tokenizer that belongs to the model, "
            "or take out the tokens that were added to it",
            named=where is not None,
        )

    def _sentence(self, failures: Sequence[_Failure]) -> str:
        """What is wrong, and where."""
        known = [one for one in failures if one.sentence]
        if known:
            return next((one.sentence for one in known if one.named), known[-1].sentence)
        return (
            f"{self._folder / self._culprit()}: transformers can't use this tokenizer ({failures[0].reason}); correct "
            "the file, or save_pretrained() the model's tokenizer into the checkpoint with transformers' AutoTokenizer"
        )

    def _culprit(self) -> str:
        """The file without which transformers' own faults are gone."""
        told = {name: self._told[name] for name in (SPECIAL, ADDED) if self._told[name]}
        nothing: dict[str, _Config] = {name: {} for name in told}
        alone = self._attempt({CONFIG: {"tokenizer_class": _ANY_CLASS, "eos_token": "</s>"}, **nothing})
        if isinstance(alone, _Failure) and not alone.sentence:
            return TOKENIZER
        return next((name for name in told if self._loads({**told, name: {}})), CONFIG)

    def _loads(self, instead: Mapping[str, _Config]) -> bool:
        found, _, failures = self._search(instead)
        return found is not None or any(one.sentence for one in failures)

    def _changes(self, made: _Config, failures: Sequence[_Failure]) -> str:
        given = self._told[CONFIG]
        keys = sorted(key for key in given.keys() | made.keys() if given.get(key, _OUT) != made.get(key, _OUT))
        told = ", ".join(f"{key}: {json.dumps(made[key])[:60]}" if key in made else f"no {key}" for key in keys)
        why = f"plain transformers can't use it ({failures[0].reason})" if failures else "it leads to other files"
        return f"{self._folder / CONFIG}: {why}; students get one with {told}, which gives the same ids"


def _candidates(given: _Config, tokenizer: Mapping[str, Any]) -> Iterator[_Config]:
    """Versions of tokenizer_config.json to try: with the fewest changes first, with another class last."""
    inside = {key: value for key, value in given.items() if key not in _ELSEWHERE}
    remedies = [remedy for remedy in _REMEDIES if remedy(inside)]
    for class_changes in ({}, _without_class(inside, tokenizer)):
        for number in range(len(remedies) + 1):
            for chosen in combinations(remedies, number):
                made = dict(inside)
                for remedy in chosen:
                    made |= remedy(made)
                made |= class_changes
                yield {key: value for key, value in made.items() if value is not _OUT}


def _typed_tokens(config: _Config) -> dict[str, Any]:
    """Special tokens that are told as objects say that they are tokens."""

    def typed(token: Any) -> Any:
        return {"__type": "AddedToken"} | token if isinstance(token, dict) else token

    told = {key: config[key] for key in _SPECIAL_TOKENS if isinstance(config.get(key), dict | list)}
    made = {key: [*map(typed, one)] if isinstance(one, list) else typed(one) for key, one in told.items()}
    return {key: value for key, value in made.items() if value != config[key]}


def _listed_tokens(config: _Config) -> dict[str, Any]:
    """transformers 5 calls a list of further special tokens what 4 calls a mapping."""
    further, own = config.get("extra_special_tokens"), config.get("additional_special_tokens") or []
    if not isinstance(further, list) or not isinstance(own, list):
        return {}
    return {"extra_special_tokens": _OUT, "additional_special_tokens": [*own, *(x for x in further if x not in own)]}


def _without_prefix_space(config: _Config) -> dict[str, Any]:
    """Llama's class makes its tokenizer anew for it, by sentencepiece, which plain transformers comes without."""
    return {"add_prefix_space": _OUT} if config.get("add_prefix_space") is not None else {}


def _without_defaults(config: _Config) -> dict[str, Any]:
    """Tokens that only the class names, and that the tokenizer may not have, are not added to it."""
    return {key: None for key in ("bos_token", "pad_token", "unk_token") if key not in config}


def _without_absent_ends(config: _Config) -> dict[str, Any]:
    """A token that there is none of is not added to texts, which some classes do by default."""
    ends = {"add_bos_token": "bos_token", "add_eos_token": "eos_token"}
    return {add: False for add, token in ends.items() if config.get(token) is None and config.get(add) is not False}


_REMEDIES: tuple[Callable[[_Config], dict[str, Any]], ...] = (
    _typed_tokens,
    _listed_tokens,
    _without_prefix_space,
    _without_defaults,
    _without_absent_ends,
)
"""Each gives the keys to change; none where it is not for this tokenizer_config.json."""


def _without_class(config: _Config, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """A class that leaves tokenizer.json as it is, once it is told not to change the prefix space there."""
    before = tokenizer.get("pre_tokenizer")
    spaced = isinstance(before, dict) and before.get("add_prefix_space") is True
    return {
        "tokenizer_class": _ANY_CLASS,
        "add_prefix_space": True if spaced else _OUT,
        "model_input_names": config.get("model_input_names") or ["input_ids", "attention_mask"],
    }
