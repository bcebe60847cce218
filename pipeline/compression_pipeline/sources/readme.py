"""What a dataset's README.md says of its files: `configs` in its header, as Hugging Face's `datasets` reads them."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from compression_pipeline.config import TextConfig
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.terms import CARD, front_matter
from compression_pipeline.text.files import FORMATS, is_text

from . import corpus, splits

_CHANGE_ROWS = ("field", "columns", "filters", "encoding", "encoding_errors", "sample_by", "keep_linebreaks")
"""Parameters of a configuration by which `datasets` makes other rows of the same files."""

_RECORDS = frozenset({"README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"})
"""Files that a pattern matches only where it names them."""

_DATA = frozenset(
    {
        *("txt", "json", "jsonl", "ndjson", "parquet", "csv", "tsv", "xml", "arrow", "h5", "hdf5", "eval", "lance"),
        *("zip", "tar", "pdf", "jpg", "png", "wav", "mp3"),
    }
)
"""Endings of what `datasets` takes for data: what has none of them, such as a licence, is no part of a pattern."""


def header(text: str, where: str) -> Any:
    """`configs` of a README's text; None where it has none. Raises UserError for a header that can't be read."""
    found = front_matter(text)
    if not found and re.match(r"---\n(.*\n)*?configs:", text):
        raise UserError(f"{where}: the header of {CARD} is no YAML, and it has configs; correct it")
    return found.get("configs")


def files_of(configs: Any, names: Collection[str], dataset: TextConfig, where: str) -> dict[str, list[str]] | None:
    """Files by split, as the `configs` of a README tell; None where they tell nothing of files.

    `names`: all files of the dataset, relative to it. Files of kinds that can't be read are among what is found. Raises
    UserError where the configuration that the manifest names isn't there, where one must be named, where a file is
    named that isn't there or lies elsewhere, and for parameters that change what rows are.
    """
    told = [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []
    if not any(one.get("data_files") or one.get("data_dir") for one in told):
        return None
    known = [str(one.get("config_name", "default")) for one in told]
    flagged = next((name for name, one in zip(known, told, strict=True) if one.get("default")), None)
    name = splits.choose(known, dataset.config, where, flagged)
    entry = told[known.index(name)]
    strange = next((key for key in _CHANGE_ROWS if entry.get(key) is not None), None)
    if strange is not None:
        raise UserError(
            f"{where}: {CARD} has {strange} in its configuration {name}, which is not supported; name the data files "
            "themselves in dataset.source, or save the rows as JSON Lines"
        )
    folder = str(entry.get("data_dir") or "").strip("/").removeprefix("./")
    below = f"{folder}/" if folder else ""
    if not entry.get("data_files"):
        inside = [one.removeprefix(below) for one in names if one.startswith(below) and is_text(one)]
        kept = [one for one in inside if one not in corpus.beside(inside)]
        named = [split for split in (dataset.train_split, dataset.validation_split) if split]
        return {split: [below + one for one in files] for split, files in splits.by_name(kept, named).items()}
    found: dict[str, list[str]] = {}
    for split, patterns in _patterns(entry["data_files"]):
        for pattern in patterns:
            found.setdefault(split, []).extend(_matching(below + str(pattern).removeprefix("./"), names, where))
    return found


def unreadable(found: Mapping[str, Sequence[str]], dataset: TextConfig) -> tuple[str, str] | None:
    """The first split and file of those asked for that can't be read; None where all can."""
    asked = (dataset.train_split, dataset.validation_split or "validation")
    return next(((split, name) for split in asked for name in found.get(split, ()) if not is_text(name)), None)


def check_kinds(found: Mapping[str, Sequence[str]], dataset: TextConfig, where: str) -> None:
    """Raises UserError for a file of the splits that are asked for which can't be read."""
    if strange := unreadable(found, dataset):
        split, name = strange
        raise UserError(
            f"{where}: {name}, which {CARD} names for the split {split}, is of an unsupported type; give one of "
            f"{', '.join(FORMATS)}"
        )


def _matching(pattern: str, names: Collection[str], where: str) -> list[str]:
    from fsspec.utils import glob_translate

    parts = PurePosixPath(pattern).parts
    if "://" in pattern or pattern.startswith("/") or ".." in parts:
        raise UserError(f"{where}: {CARD} names {pattern}, which lies outside of the dataset; copy it into the dataset")
    try:
        form = re.compile(glob_translate(pattern))
    except (ValueError, re.error) as error:
        raise UserError(f"{where}: {CARD} names {pattern}, which is no pattern ({error}); correct it") from error
    ignored = _RECORDS - {PurePosixPath(pattern).name}
    found = [
        name
        for name in sorted(names)
        if form.match(name)
        and PurePosixPath(name).name not in ignored
        and _is_asked_for(name, parts)
        and _is_data(name)
    ]
    if not found and not set("*?[") & set(pattern):
        raise UserError(f"{where}: {CARD} names {pattern}, and there is no such file; correct the one or add the other")
    return found


def _is_asked_for(name: str, pattern: Sequence[str]) -> bool:
    """What is hidden, or special (`__MACOSX`), matches only where the pattern says so."""
    parts = PurePosixPath(name).parts
    return _hidden(parts) == _hidden(pattern) and _special(parts[:-1]) == _special(pattern[:-1])


def _hidden(parts: Sequence[str]) -> int:
    return sum(part.startswith(".") for part in parts)


def _special(parts: Sequence[str]) -> int:
    return sum(part.startswith("__") for part in parts)


def _is_data(name: str) -> bool:
    return not _DATA.isdisjoint(PurePosixPath(name).name.split(".")[1:])


def _patterns(data_files: Any) -> list[tuple[str, list[Any]]]:
    """The forms that `data_files` may have: a pattern, patterns, {split: pattern(s)}, [{split, path}]."""
    if isinstance(data_files, dict):
        return [(str(split), _listed(paths)) for split, paths in data_files.items()]
    entries = _listed(data_files)
    if all(isinstance(entry, dict) for entry in entries):
        return [(str(entry.get("split", "train")), _listed(entry.get("path", []))) for entry in entries]
    return [("train", entries)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]
