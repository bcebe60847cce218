"""The proof that an export is the student that was trained: logits of real text, by two implementations.

distill leaves the logits of the student in Megatron, in float32, from weights rounded to each type that an export may
have. export computes the same in plain transformers from the files it wrote.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .config import ExportDtype
from .huggingface.writer import save_tensors

FILE = "reference.safetensors"
SEQUENCES, TOKENS = 2, 128
"""Sequences, and tokens of each at most, that the logits are compared on."""

MOST_VALUES = 2**24
"""Logits kept for each type at most (64 MiB); of large vocabularies not every position is kept."""


@dataclass(frozen=True)
class Reference:
    """Logits to compare with."""

    tokens: Tensor
    """[sequences, tokens], int64."""
    positions: Tensor
    """Positions whose logits are kept, int64, ascending."""
    logits: dict[ExportDtype, Tensor]
    """Type of the weights -> [sequences, positions, vocabulary], float32."""

    def write(self, folder: Path) -> None:
        """Write `reference.safetensors` into `folder`."""
        logits = {f"logits.{dtype.value}": tensor.cpu().contiguous() for dtype, tensor in self.logits.items()}
        tensors = {"tokens": self.tokens.cpu().contiguous(), "positions": self.positions.cpu(), **logits}
        save_tensors(tensors, folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> "Reference":
        """Read what `write` wrote."""
        tensors = load_file(folder / FILE)
        logits = {dtype: tensors[f"logits.{dtype.value}"] for dtype in ExportDtype}
        return cls(tensors["tokens"], tensors["positions"], logits)


def kept_positions(sequences: int, length: int, vocabulary: int) -> Tensor:
    """Positions of each sequence whose logits are kept: all, or as many as `MOST_VALUES` lets, evenly spread, the last
    one among them."""
    count = max(1, min(length, MOST_VALUES // (sequences * vocabulary)))
    return torch.tensor([math.ceil(length * (number + 1) / count) - 1 for number in range(count)])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max |expected|; infinite where either has values that aren't finite."""
    if not (found.isfinite().all() and expected.isfinite().all()):
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max())
