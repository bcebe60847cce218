"""What lies in a checkpoint's folder, found without torch: headers, config.json and tokenizer.json are all it reads."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_pipeline.config import Architecture
from compression_pipeline.errors import UserError

from .families import family_of_config
from .names import EMBEDDING, Shape, expected_shapes, is_redundant

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"

WEIGHT_TYPES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Safetensors' names of the types that weights may have, and their sizes in bytes."""

HEADER_LIMIT = 100_000_000
"""Bytes that a safetensors header has at most (the format's own limit)."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint."""

    dtype: str  # safetensors' name, e.g. "BF16"
    shape: Shape
    file: str  # name within the folder


@dataclass(frozen=True)
class CheckpointFiles:
    """A whole checkpoint: every tensor that its architecture asks for, each with the right shape."""

    folder: Path
    config: Mapping[str, Any]
    architecture: Architecture
    tensors: Mapping[str, TensorEntry]

    @property
    def weight_files(self) -> list[str]:
        """Names of the safetensors files, sorted."""
        return sorted({entry.file for entry in self.tensors.values()})


def inspect(folder: Path) -> CheckpointFiles:
    """Look at a checkpoint.

    Raises UserError, naming the file and the fix, where there is no config.json, the architecture is unknown, the
    weights are pickled only, a shard is missing or truncated, tensors are missing or have other shapes than config.json
    says, or the tokenizer has tokens that the embedding lacks.
    """
    files = inspect_weights(folder)
    largest = largest_token(folder)
    if largest is not None and largest >= files.architecture.vocabulary_size:
        raise UserError(
            f"{folder / TOKENIZER}: token id {largest} is outside of the model's embedding of "
            f"{files.architecture.vocabulary_size} rows (vocab_size); use the tokenizer that belongs to the model"
        )
    return files


def inspect_weights(folder: Path) -> CheckpointFiles:
    """As `inspect`, without a look at the tokenizer."""
    config = read_config(folder)
    architecture = read_architecture(folder, config)
    tensors = read_tensors(folder)
    check_shapes(folder, tensors, expected_shapes(architecture), architecture)
    return CheckpointFiles(folder, config, architecture, tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path} is missing; give the folder of a Hugging Face checkpoint")
    return _read_json(path)


def read_architecture(folder: Path, config: Mapping[str, Any] | None = None) -> Architecture:
    """The architecture that a checkpoint's config.json describes."""
    config = read_config(folder) if config is None else config
    file = str(folder / CONFIG)
    return family_of_config(config, file).architecture(config, file)


def read_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of a checkpoint, from the headers of its safetensors files."""
    if (folder / SINGLE).is_file():
        return _read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise UserError(_no_weights(folder))
    wanted = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(wanted, dict) or not all(isinstance(name, str) for name in wanted.values()):
        raise UserError(f"{folder / INDEX} has no weight_map; download it again")
    tensors: dict[str, TensorEntry] = {}
    for file in sorted(set(wanted.values())):
        if Path(file).name != file:
            raise UserError(f"{folder / INDEX}: shard {file} lies outside of the folder; download the checkpoint again")
        if not (folder / file).is_file():
            raise UserError(f"{folder / file} is missing, {INDEX} lists it; download it again")
        tensors |= _read_header(folder / file)
    lost = next((name for name, file in wanted.items() if name not in tensors or tensors[name].file != file), None)
    if lost is not None:
        raise UserError(
            f"{folder / wanted[lost]} lacks tensor {lost}, which {INDEX} places there; download both files again"
        )
    return tensors


def check_shapes(
    folder: Path, found: Mapping[str, TensorEntry], expected: Mapping[str, Shape], architecture: Architecture
) -> None:
    """Hold the tensors that there are against those that the architecture asks for."""
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{folder}: tensor {name} is missing, {CONFIG} asks for it; download the checkpoint again")
        if found[name].shape == shape:
            continue
        if name == EMBEDDING and found[name].shape[1:] == shape[1:]:
            raise UserError(
                f"{folder / CONFIG}: vocab_size is {shape[0]}, but the embedding ({name}) has {found[name].shape[0]} "
                "rows; set vocab_size to that"
            )
        raise UserError(
            f"{folder / found[name].file}: tensor {name} has shape {list(found[name].shape)}, {CONFIG} asks for "
            f"{list(shape)}; the two are not of the same model, download the checkpoint again"
        )
    for name, entry in found.items():
        if name not in expected and not is_redundant(name, architecture):
            raise UserError(
                f"{folder / entry.file}: tensor {name} has no place in a {architecture.family} model of {CONFIG}'s "
                "sizes; download the checkpoint again, or use a model that is only that"
            )
        if name in expected and entry.dtype not in WEIGHT_TYPES:
            raise UserError(
                f"{folder / entry.file}: tensor {name} is of type {entry.dtype}; use a checkpoint with weights of "
                f"one of these: {', '.join(WEIGHT_TYPES)}"
            )


def largest_token(folder: Path) -> int | None:
    """The largest token id of tokenizer.json, added tokens included; None where there is no such file."""
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    tokenizer = _read_json(path)
    added = [token["id"] for token in tokenizer.get("added_tokens") or []]
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    # A mapping of token to id (BPE, WordPiece, WordLevel) or a list whose positions are the ids (Unigram).
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max([*added, max(ids, default=-1)])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; download it again")
    return content


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    if shards:
        return f"{folder / INDEX} is missing, although there are shards ({shards[0]}, ...); download it"
    if pickled:
        return (
            f"{folder}: the weights are only there as pickle ({pickled[0]}), which may run code when loaded; "
            "convert them to safetensors"
        )
    return f"{folder}: there is neither {SINGLE} nor {INDEX}; give the folder of a checkpoint with safetensors weights"


def _read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file: 8 bytes of header length (little-endian), a JSON header, the data."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > HEADER_LIMIT:
            raise UserError(f"{path} is not a safetensors file (impossible header); download it again")
        raw = file.read(length)
    if not length or len(raw) < length:
        raise UserError(f"{path} is truncated: {size} bytes, not even a whole header; download it again")
    try:
        header = json.loads(raw)
        spans = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {
            name: TensorEntry(str(entry["dtype"]), tuple(map(int, entry["shape"])), path.name)
            for name, entry in spans.items()
        }
        ends = {name: (int(entry["data_offsets"][0]), int(entry["data_offsets"][1])) for name, entry in spans.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not a safetensors file (unreadable header); download it again") from error
    whole = 8 + length + max((end for _, end in ends.values()), default=0)
    if size < whole:
        raise UserError(f"{path} is truncated: {size} of {whole} bytes; download it again")
    for name, (begin, end) in ends.items():
        width = WEIGHT_TYPES.get(tensors[name].dtype)
        if width is not None and end - begin != width * math.prod(tensors[name].shape):
            raise UserError(f"{path}: tensor {name} has another length than its shape; download it again")
    return tensors
