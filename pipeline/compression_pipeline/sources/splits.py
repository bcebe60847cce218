"""Which files belong to which split: by a dataset's README on the Hub, else by their names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from compression_pipeline.config import DatasetConfig
from compression_pipeline.errors import UserError
from compression_pipeline.text.files import FORMATS

from .base import Place

_ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words in names that tell a split, as Hugging Face's `datasets` reads them."""

_SHARD = re.compile(r"(?P<stem>\w[\w.-]*?)-\d{5}-of-\d{5}")
_NUMBERS = r"(?:[-._ ]?\d+|[-._ ]of)*"


def by_name(names: Iterable[str], extra: Iterable[str] = ()) -> dict[str, list[str]]:
    """Files by split, sorted, as folders and names tell (`train.jsonl`, `data/validation-00000-of-00002.parquet`).

    `extra`: splits named in the manifest, which count as words too. Files that tell no split are train, where no file
    tells that it is; else they belong to none.
    """
    words = _ALIASES | {name.lower(): name for name in extra}
    ordered = sorted(names)
    stems = {match["stem"] for name in ordered if (match := _SHARD.fullmatch(_stem(name)))}
    if len(stems) > 1:  # shards of several things: those are splits, whatever they are called
        words = {stem.lower(): stem for stem in stems} | words
    found: dict[str, list[str]] = {}
    for name in ordered:
        found.setdefault(_split_of(name, words) or "", []).append(name)
    untold = found.pop("", [])
    return found if "train" in found or not untold else found | {"train": untold}


def _split_of(name: str, words: Mapping[str, str]) -> str | None:
    for folder in name.lower().split("/")[:-1]:
        if folder in words:
            return words[folder]
    stem = _stem(name).lower()
    for word in sorted(words, key=len, reverse=True):  # train_sft before sft
        # The word alone, after others (wiki.train) and before numbers (train-00000-of-00002), but no "train stations".
        if re.fullmatch(rf"(?:.*[-._ ])?{re.escape(word)}{_NUMBERS}", stem):
            return words[word]
    return None


def _stem(name: str) -> str:
    """The last part of a name without its ending."""
    last = name.rsplit("/", 1)[-1]
    ending = next((e for e in FORMATS if last.lower().endswith(e)), "")
    return last[: len(last) - len(ending)]


def by_readme(configs: Any, names: Iterable[str], config: str | None, where: str) -> dict[str, list[str]] | None:
    """Files by split as the `configs` of a dataset's README say; None where it says nothing of files.

    `config`: the one that the manifest names. Raises UserError where it isn't there, or one must be named.
    """
    told = (
        [one for one in configs if isinstance(one, dict) and one.get("data_files")] if isinstance(configs, list) else []
    )
    if not told:
        return None
    known = [str(one.get("config_name", "default")) for one in told]
    chosen = choose(
        known, config, where, next((k for k, one in zip(known, told, strict=True) if one.get("default")), None)
    )
    entry = told[known.index(chosen)]
    folder = str(entry.get("data_dir") or "").strip("/")
    found: dict[str, list[str]] = {}
    for split, patterns in _patterns(entry["data_files"]):
        for pattern in patterns:
            full = re.compile(_regex(f"{folder}/{pattern}" if folder else pattern.removeprefix("./")))
            found.setdefault(split, []).extend(name for name in sorted(names) if full.fullmatch(name))
    return found


def choose(known: list[str], wanted: str | None, where: str, default: str | None = None) -> str:
    """The configuration (subset) to take: the wanted one, the default, the only one. Raises UserError."""
    if wanted is not None:
        if wanted in known:
            return wanted
        raise UserError(f"{where} has no configuration {wanted}; set dataset.config to one of {', '.join(known[:50])}")
    if default is None and "default" in known:
        default = "default"
    if default is None and len(known) == 1:
        default = known[0]
    if default is None:
        raise UserError(f"{where} has several configurations; set dataset.config to one of {', '.join(known[:50])}")
    return default


def warn_of_unused(names: Iterable[str], found: Mapping[str, list[str]], place: Place) -> None:
    """Say which files are left aside because others tell their split by name."""
    used = {name for files in found.values() for name in files}
    unused = sorted(set(names) - used)
    if unused:
        place.context.events.warning(
            f"{place.field}: {place.source}: {len(unused)} files are not used, for their names tell no split while "
            f"others' do (the first: {unused[0]})"
        )


def wanted(found: Mapping[str, list[str]], dataset: DatasetConfig, where: str) -> tuple[list[str], list[str]]:
    """The files of the splits for training and validation (none: it is held out). Raises UserError."""
    for field, split in (("trainSplit", dataset.train_split), ("validationSplit", dataset.validation_split)):
        if split is not None and not found.get(split):
            known = ", ".join(name for name, files in found.items() if files) or "none"
            raise UserError(f"{where} has no split {split}; set dataset.{field} to one of its splits: {known}")
    validation = dataset.validation_split or "validation"
    if validation == dataset.train_split:
        return found[dataset.train_split], []
    return found[dataset.train_split], found.get(validation, [])


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """The forms that `data_files` may have: a pattern, patterns, {split: pattern(s)}, [{split, path}]."""
    if isinstance(data_files, dict):
        return [(str(split), _listed(paths)) for split, paths in data_files.items()]
    entries = _listed(data_files)
    if all(isinstance(entry, dict) for entry in entries):
        return [(str(entry.get("split", "train")), _listed(entry.get("path", []))) for entry in entries]
    return [("train", [str(entry) for entry in entries])]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _regex(pattern: str) -> str:
    """A glob as a regular expression: `*` and `?` stay within a folder, `**` doesn't."""
    parts = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    return "".join(parts.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))
