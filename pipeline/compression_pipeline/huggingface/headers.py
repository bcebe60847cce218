"""The header of a safetensors file: which tensors it has, of which types and shapes, and where."""

import json
import math
import os
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from compression_pipeline.errors import UserError

from .layout import POINTER, is_pointer
from .names import Shape

WEIGHT_TYPES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
"""Safetensors' names of the types that weights may have, and their sizes in bytes."""

TORCH_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}

HEADER_LIMIT = 100_000_000
"""Bytes that a safetensors header has at most (the format's own limit)."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a checkpoint."""

    dtype: str  # safetensors' name, e.g. "BF16"
    shape: Shape
    file: str  # name within the folder
    start: int  # of its data in the file, in bytes
    size: int  # bytes


def read_header(content: BufferedReader, path: Path, file: str) -> dict[str, TensorEntry]:
    """The tensors of one file: 8 bytes of header length (little-endian), a JSON header, the data without gaps.

    `path` is how sentences name it, `file` how its entries do.

    Raises UserError, which names the file and the fix, for what isn't a whole safetensors file.
    """
    size = os.fstat(content.fileno()).st_size
    if not size:
        raise UserError(f"{path} is empty: 0 bytes, truncated on its way; get it again from the model's source")
    start = content.read(8)
    if is_pointer(start + content.read(64)):
        raise UserError(f"{path} is {POINTER}")
    content.seek(len(start))
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if length > HEADER_LIMIT:
        raise UserError(f"{path} is not a safetensors file (impossible header); download it again")
    raw = content.read(length)
    if not length or len(raw) < length:
        raise UserError(f"{path} is truncated: {size} bytes, not even a whole header; download it again")
    try:
        tensors = _entries(json.loads(raw), file, 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not a safetensors file (unreadable header); download it again") from error
    _check_extents(path, tensors, size, 8 + length)
    return tensors


def _entries(header: dict[str, dict[str, list[int]]], file: str, begin: int) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = map(int, entry["data_offsets"])
            shape = tuple(map(int, entry["shape"]))
            found[name] = TensorEntry(str(entry["dtype"]), shape, file, begin + first, end - first)
    return found


def _check_extents(path: Path, tensors: dict[str, TensorEntry], size: int, begin: int) -> None:
    whole = max((entry.start + entry.size for entry in tensors.values()), default=begin)
    if size < whole:
        raise UserError(f"{path} is truncated: {size} of {whole} bytes; download it again")
    reached = begin
    for name, entry in sorted(tensors.items(), key=lambda each: (each[1].start, each[1].size)):
        width = WEIGHT_TYPES.get(entry.dtype)
        if width is not None and entry.size != width * math.prod(entry.shape):
            raise UserError(f"{path}: tensor {name} has another length than its shape; download it again")
        if entry.start != reached:
            raise UserError(f"{path}: tensor {name} does not begin where the one before it ends; download it again")
        reached += entry.size
    if size > reached:
        raise UserError(f"{path} is {size - reached} bytes longer than its tensors; download it again")
