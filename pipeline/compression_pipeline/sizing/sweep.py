"""Which blocks of layers a sweep leaves out of a model, each in turn, and what that costs. Pure."""

from collections.abc import Sequence
from typing import TypeAlias

Block: TypeAlias = tuple[int, int]
"""First layer, counted from 0, and number of layers."""


def block_lengths(layers: int, dropped: int | None) -> list[int]:
    """Lengths of the blocks that are left out of a model: the powers of two below its layers, and what is to be cut."""
    lengths = {1 << power for power in range(layers.bit_length()) if 1 << power < layers}
    return sorted(lengths | ({dropped} if dropped else set()))


def swept_for(dropped: int | None) -> int | None:
    """What is to be cut, where a sweep measures blocks of that length for it alone; None where those of the sweep of
    any shape do.
    """
    return dropped if dropped and dropped.bit_count() > 1 else None


def blocks_of(layers: int, dropped: int | None) -> list[Block]:
    """The blocks of these lengths, those with the same first layer together, the shortest first."""
    lengths = block_lengths(layers, dropped)
    return [(first, length) for first in range(layers) for length in lengths if first + length <= layers]


def forward_passes(layers: int, blocks: Sequence[Block]) -> float:
    """Passes through all layers that a sweep takes which computes what comes before a block once for all of them."""
    return 1 + sum(layers - first - length for first, length in blocks) / layers
