"""What is measured of a model without each contiguous block of layers, and how far a sweep over these has come."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.sizing.sweep import Block

from .base import Noted


def block_table(blocks: Sequence[Block], whole: float, without: Sequence[float]) -> Tensor:
    """`Scores` has it as layers.blocks: of the whole model, and of the model without each block."""
    rows = [(0.0, 0.0, whole)]
    rows += [(first + 1.0, float(length), value) for (first, length), value in zip(blocks, without, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)


def resumed(notes: Noted, blocks: Sequence[Block], passes: int, numbers: int) -> tuple[int, list[float]]:
    """How many blocks, pass by pass, earlier attempts have done at most, and the `numbers` that they noted."""
    found = [(0, [0.0] * numbers)]
    for note in notes:
        match note:
            case {
                "blocks": list() as of,
                "passes": int() as over,
                "done": int() as done,
                "found": list() as values,
            } if (
                of == [list(block) for block in blocks]
                and over == passes
                and 0 <= done <= passes * len(blocks)
                and len(values) == numbers
                and all(isinstance(value, float) and math.isfinite(value) for value in values)
            ):
                found.append((done, values))
            case _:
                pass
    return max(found, key=lambda one: one[0])


def note_of(blocks: Sequence[Block], passes: int, done: int, found: Sequence[float]) -> Any:
    """What `resumed` reads."""
    return {"blocks": blocks, "passes": passes, "done": done, "found": list(found)}
