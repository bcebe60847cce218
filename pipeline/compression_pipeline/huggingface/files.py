"""What lies in a checkpoint's folder, found without torch: headers and config.json are all it reads."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import chain, islice
from pathlib import Path
from typing import Any

from compression_pipeline.config import Architecture
from compression_pipeline.errors import UserError

from .families import family_of_config, member
from .families.base import WHOLE_NUMBERS
from .headers import TORCH_NAMES, TensorEntry, read_header
from .layout import CONFIG, GENERATION_CONFIG, INDEX, parse, weight_files, weight_map
from .names import EMBEDDING, expected_shapes
from .tensors import check_tensors

Elsewhere = Mapping[str, Callable[[], BufferedReader]]
"""Weights of a folder that lie elsewhere as yet: name in the folder -> how the file is opened."""

MOST_NAMES = 10_000
"""Files in folders below a checkpoint's that are looked at, of one depth."""


@dataclass(frozen=True)
class CheckpointFiles:
    """A whole checkpoint: every tensor that its architecture asks for, each with the right shape."""

    folder: Path
    config: Mapping[str, Any]
    architecture: Architecture
    tensors: Mapping[str, TensorEntry]
    elsewhere: Elsewhere = field(default_factory=dict)

    def open(self, file: str) -> BufferedReader:
        """One of the weight files, to read. Raises OSError, and what opening it elsewhere does."""
        return _open(self.folder, file, self.elsewhere)

    @property
    def weight_files(self) -> list[str]:
        """Names of the safetensors files, sorted."""
        return sorted({entry.file for entry in self.tensors.values()})

    def normalized(self) -> dict[str, Any]:
        """config.json in the one spelling that every reader understands alike: what our own family code writes."""
        dtype = TORCH_NAMES[self.tensors[EMBEDDING].dtype]
        return member(self.architecture.family).configuration(self.architecture, self.config, dtype)


def inspect(folder: Path, elsewhere: Elsewhere | None = None) -> CheckpointFiles:
    """Look at a checkpoint's weights and configuration (`tokenizer.load` looks at the rest).

    `elsewhere`: weights that are not in the folder; its other files are.

    Raises UserError, naming the file and the fix, where there is no config.json, the architecture is unknown, the
    weights are pickled only, generation_config.json is no JSON object, a shard is missing or truncated, or tensors are
    missing or have other shapes than config.json says.
    """
    config = read_config(folder)
    architecture = read_architecture(folder, config)
    if (generation := folder / GENERATION_CONFIG).is_file():
        read_json(generation)  # it is read by the export, at the end
    tensors = read_tensors(folder, elsewhere or {})
    try:
        check_tensors(folder, tensors, expected_shapes(architecture), architecture)
    except UserError as error:
        absent = [key for key in WHOLE_NUMBERS if config.get(key) is None]
        if not absent:
            raise
        raise UserError(
            f"{folder / CONFIG} has no {', '.join(absent)}, and the weights are not of the default size; copy it from "
            "the model's source again"
        ) from error
    return CheckpointFiles(folder, config, architecture, tensors, elsewhere or {})


def names_of(folder: Path) -> set[str]:
    """Files of a folder and of those near below it, relative to it: what a checkpoint may name, and what tells what the
    folder is where it has none."""
    below = ("*/*", "*/*/*", "models--*/snapshots/*/*")
    found = chain(folder.iterdir(), *(islice(folder.glob(pattern), MOST_NAMES) for pattern in below))
    return {path.relative_to(folder).as_posix() for path in found if path.is_file()}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path} is missing; give the folder of a Hugging Face checkpoint")
    return read_json(path)


def read_architecture(folder: Path, config: Mapping[str, Any] | None = None) -> Architecture:
    """The architecture that a checkpoint's config.json describes."""
    config = read_config(folder) if config is None else config
    file = str(folder / CONFIG)
    return family_of_config(config, file).architecture(config, file)


def read_tensors(folder: Path, elsewhere: Elsewhere) -> dict[str, TensorEntry]:
    """Every tensor of a checkpoint, from the headers of the files that transformers would load."""
    files = weight_files(names_of(folder) | elsewhere.keys(), lambda name: (folder / name).read_bytes(), str(folder))
    tensors: dict[str, TensorEntry] = {}
    for file in (name for name in files if name != INDEX):
        with _open(folder, file, elsewhere) as content:
            entries = read_header(content, folder / file, file)
        for name, entry in entries.items():
            if name in tensors:
                raise UserError(
                    f"{folder}: tensor {name} is in {tensors[name].file} and in {file}; remove the one that is stale"
                )
            tensors[name] = entry
    if INDEX in files:
        _check_places(folder, tensors)
    return tensors


def _check_places(folder: Path, tensors: Mapping[str, TensorEntry]) -> None:
    wanted = weight_map((folder / INDEX).read_bytes(), str(folder / INDEX))
    for name, file in wanted.items():
        if name not in tensors or tensors[name].file != file:
            raise UserError(
                f"{folder / file} lacks tensor {name}, which {INDEX} places there; get both from the same source"
            )


def _open(folder: Path, file: str, elsewhere: Elsewhere) -> BufferedReader:
    return elsewhere[file]() if file in elsewhere else (folder / file).open("rb")


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError."""
    return parse(path.read_bytes(), str(path))


def write_json(path: Path, content: Any) -> None:
    """A JSON file as Hugging Face's libraries write theirs."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
