"""Where tensor parallelism cuts the tensors of a model, by either library's names, and how parts are joined again.

Of a matrix whose outputs are shared, and of the vocabulary, each rank has rows (the first dimension); of one that takes
what those gave it has columns. Norms, and biases that are none of such rows, every rank has whole. Of each width a rank
has the same part, in the order of the ranks, so query heads stay with their KV groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ROWS = frozenset({"embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"})
_COLUMNS = frozenset({"o_proj", "down_proj"})
_MEGATRON_ROWS = frozenset({"word_embeddings", "output_layer", "linear_qkv", "linear_fc1"})
_MEGATRON_COLUMNS = frozenset({"linear_proj", "linear_fc2"})
_HALVES = "linear_fc1"
"""The layer that has the gate's rows and then the up projection's: a rank has its part of both."""


class Stored(Protocol):
    """A tensor in a file, of which no more is read than is asked for."""

    def get_shape(self) -> list[int]:
        """Its shape."""
        ...

    def __getitem__(self, at: tuple[slice, ...]) -> Tensor: ...


@dataclass(frozen=True)
class Share:
    """Which part of each tensor a rank has: that of number `rank` of `ranks` equal ones."""

    rank: int = 0
    ranks: int = 1

    def read(self, name: str, stored: Stored) -> Tensor:
        """The rank's part of a tensor in a file, by Hugging Face's name."""
        shape, dimension = stored.get_shape(), dimension_of(name)
        at = [slice(0, size) for size in shape]
        if dimension is not None:
            at[dimension] = self._of(shape[dimension])
        return stored[tuple(at)]

    def cut(self, name: str, whole: Tensor, *, gated: bool) -> Tensor:
        """The rank's part of a tensor, by Megatron's name, as a view where it is one piece."""
        dimension = megatron_dimension_of(name)
        if dimension is None or self.ranks == 1:
            return whole
        halves = whole.chunk(2) if _in_halves(name, gated) else (whole,)
        parts = [half[(slice(None),) * dimension + (self._of(half.shape[dimension]),)] for half in halves]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _of(self, size: int) -> slice:
        part = size // self.ranks
        return slice(self.rank * part, (self.rank + 1) * part)


WHOLE = Share()


def joined(name: str, parts: Sequence[Tensor], *, gated: bool) -> Tensor:
    """The whole tensor, by Megatron's name, of all ranks' parts in order: the inverse of `Share.cut`."""
    dimension = megatron_dimension_of(name)
    if dimension is None or len(parts) == 1:
        return parts[0]
    if _in_halves(name, gated):
        halves = zip(*(part.chunk(2) for part in parts), strict=True)
        return torch.cat([part for half in halves for part in half])
    return torch.cat(list(parts), dim=dimension)


def dimension_of(name: str) -> int | None:
    """The dimension in which a tensor of a Hugging Face checkpoint is cut; None where it isn't."""
    return _dimension(name, _ROWS, _COLUMNS)


def megatron_dimension_of(name: str) -> int | None:
    """The dimension in which a parameter of a GPTModel is cut; None where it isn't."""
    return _dimension(name, _MEGATRON_ROWS, _MEGATRON_COLUMNS)


def _dimension(name: str, rows: frozenset[str], columns: frozenset[str]) -> int | None:
    layer = name.split(".")[-2]
    return 0 if layer in rows else 1 if layer in columns else None


def _in_halves(name: str, gated: bool) -> bool:
    return gated and name.split(".")[-2] == _HALVES
