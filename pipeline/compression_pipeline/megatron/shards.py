"""Tensors that ranks share, as safetensors: every rank writes its parts, and any number of ranks reads them.

Nothing here is unpickled: whoever may write into a store could otherwise run code in whoever reads it. A rank's file is
plain safetensors; its header says of which tensor each part is one, and where it begins. It is written piece by piece,
for the library would hold all of it in memory a second time.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory, is_main_replica
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compression_pipeline.transient import is_transient

_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_PARTS, _EXTRA = "parts", "extra"


class Unreadable(Exception):
    """What was read is not what was written."""


class Foreign(Unreadable):
    """What was read is whole, but another version or another model wrote it."""


class Missing(Unreadable):
    """A file is not there; it may be seen later, or where it was put."""


@dataclass(frozen=True)
class Part:
    """A rank's part of a tensor."""

    key: str
    whole: tuple[int, ...]
    """Shape of the whole tensor."""
    offset: tuple[int, ...]
    """Where this part begins in it."""
    tensor: Tensor
    """The part; it shares its memory with what it is taken from, so copying into it loads it."""
    mine: bool
    """Whether this rank is the one of those that hold the same part to write it."""
    mine_of_copy: bool = True
    """Whether it is the one of those that do so in its copy of the model."""

    def pieces(self, key: str, values: Tensor, start: int) -> "Iterator[Part]":
        """What belongs to this part of values that are flat and begin at number `start` of it, or before it, and may go
        on after it: rectangles, which any other layout of ranks can read. Nobody else of this copy has them.
        """
        first, last = max(start, 0), min(start + values.numel(), self.tensor.numel())
        for offset, shape in _rectangles(tuple(self.tensor.shape), first, last):
            begin = sum(at * math.prod(self.tensor.shape[n + 1 :]) for n, at in enumerate(offset)) - start
            piece = values[begin : begin + math.prod(shape)].view(shape)
            place = tuple(map(sum, zip(self.offset, offset, strict=True)))
            yield Part(key, self.whole, place, piece, self.mine_of_copy, self.mine_of_copy)


def _rectangles(shape: tuple[int, ...], first: int, last: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offset, shape) of rectangles that are together the numbers from `first` to before `last` of a tensor that is
    written out row by row; each is consecutive there.
    """
    if first >= last:
        return
    if len(shape) == 1:
        yield (first,), (last - first,)
        return
    row = math.prod(shape[1:])
    rows = range(-(-first // row), last // row)  # those that are whole
    if rows.start > rows.stop:  # it begins and ends in one row
        parts = [(rows.stop, first % row, last % row)]
    else:
        parts = [(rows.start - 1, first % row, row)] if first % row else []
        if rows:
            yield (rows.start, *(0 for _ in shape[1:])), (len(rows), *shape[1:])
        parts += [(rows.stop, 0, last % row)]
    for number, begin, end in parts:
        for offset, size in _rectangles(shape[1:], begin, end):
            yield (number, *offset), (1, *size)


def parts_of(state: Any) -> list[Part]:
    """All tensors in a sharded state dict of Megatron's; what else is in there has no meaning for a local spec."""
    return list(_found(state))


def _found(state: Any) -> Iterator[Part]:
    match state:
        case Part():
            yield state
        case ShardedTensorFactory():
            yield from _found(state.build())
        case ShardedTensor(data=torch.Tensor() as data, flattened_range=None):
            tensor = data.detach()
            tensor = tensor.view((1,) * state.prepend_axis_num + tuple(tensor.shape))
            *others, _ = state.replica_id if isinstance(state.replica_id, tuple) else (state.replica_id,)
            mine = is_main_replica(state.replica_id)
            yield Part(
                state.key, tuple(state.global_shape), tuple(state.global_offset), tensor, mine, not any(others)
            )  # the last of its numbers counts the copies
        case Mapping():
            for value in state.values():
                yield from _found(value)
        case list() | tuple():
            for value in state:
                yield from _found(value)
        case ShardedTensor():
            raise NotImplementedError(f"{state.key}: a flattened part")
        case _:
            pass


def write(path: Path, parts: Iterable[Part], extra: Any) -> dict[str, Any]:
    """Write the parts that are this rank's to write, and `extra` (JSON); returns size and SHA-256. Raises OSError."""
    mine = {f"{part.key}@{','.join(map(str, part.offset))}": part for part in parts if part.mine}
    header: dict[str, Any] = {
        "__metadata__": {
            _PARTS: json.dumps({name: [part.key, part.whole, part.offset] for name, part in mine.items()}),
            _EXTRA: json.dumps(extra),
        }
    }
    end = 0
    for name, part in mine.items():
        start, end = end, end + part.tensor.numel() * part.tensor.element_size()
        header[name] = {
            "dtype": _TYPES[part.tensor.dtype],
            "shape": list(part.tensor.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    found = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(head, mine.values()):
            found.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"size": 8 + len(head) + end, "sha256": found.hexdigest()}


def _pieces(head: bytes, parts: Iterable[Part]) -> Iterator[Any]:
    yield len(head).to_bytes(8, "little")
    yield head
    for part in parts:
        if part.tensor.numel():
            yield part.tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class _Stored:
    """A part in a file."""

    path: Path
    name: str
    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Copy:
    """What of a stored part goes where."""

    stored: _Stored
    source: tuple[slice, ...]
    target: Tensor


class Reading:
    """The files of all ranks, looked through, and what is to be copied of them."""

    def __init__(self, paths: Sequence[Path], wanted: Iterable[Part]) -> None:
        """Raises Unreadable where a file is none of these, Foreign where what is wanted is not there as a whole."""
        self.extra: list[Any] = []
        self._copies: list[_Copy] = []
        known: dict[str, list[_Stored]] = {}
        try:
            for path in paths:
                with _open(path) as file:
                    told = file.metadata() or {}
                    self.extra.append(json.loads(told[_EXTRA]))
                    described = json.loads(told[_PARTS])
                    for name in described:
                        key, whole, offset = described[name]
                        shape = tuple(file.get_slice(name).get_shape())
                        known.setdefault(key, []).append(_Stored(path, name, tuple(whole), tuple(offset), shape))
            for part in wanted:
                self._copies += _copies(part, known.get(part.key, []))
        except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if is_transient(error):
                raise
            raise Unreadable(f"{type(error).__name__}: {error}") from error

    def copy(self) -> None:
        """Load everything that was wanted, file by file."""
        for path in dict.fromkeys(copy.stored.path for copy in self._copies):
            with _open(path) as file, torch.no_grad():
                for copy in (one for one in self._copies if one.stored.path == path):
                    copy.target.copy_(file.get_slice(copy.stored.name)[copy.source])


def _copies(part: Part, stored: Sequence[_Stored]) -> list[_Copy]:
    """What of the stored parts of a tensor makes up `part`, all of it."""
    copies: list[_Copy] = []
    for one in stored:
        if one.whole != part.whole:
            raise Foreign(f"{part.key} is {list(one.whole)} there and {list(part.whole)} here")
        starts = [max(here, there) for here, there in zip(part.offset, one.offset, strict=True)]
        ends = [
            min(here + size, there + stored_size)
            for here, size, there, stored_size in zip(
                part.offset, part.tensor.shape, one.offset, one.shape, strict=True
            )
        ]
        if any(end <= start for start, end in zip(starts, ends, strict=True)):
            continue
        source, target = (
            tuple(slice(start - base, end - base) for start, end, base in zip(starts, ends, bases, strict=True))
            for bases in (one.offset, part.offset)
        )
        copies.append(_Copy(one, source, part.tensor[target]))
    if sum(copy.target.numel() for copy in copies) != part.tensor.numel():
        raise Foreign(f"{part.key} is not there as a whole")
    return copies


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    with safe_open(str(path), framework="pt") as file:
        yield file
