"""Documents that do not see each other, although they lie in one sequence (`dataset.documentAttention: Isolated`).

As Megatron's `reset_attention_mask` and `reset_position_ids` do it at the token that ends a document: a token sees what
its sequence has of its own document up to itself, and positions count from 0 in each. Here the boundaries are those of
the documents, so an end-of-document token in the midst of a text is none.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

import numpy
import torch


def positions_in(starts: numpy.ndarray, start: int, length: int) -> torch.Tensor:
    """The place of each of `length` tokens from `start` on in what they have of its document: [length], int64.

    `starts`: where documents begin, ascending.
    """
    inside = starts[numpy.searchsorted(starts, start, side="right") : numpy.searchsorted(starts, start + length)]
    bounds = [0, *(int(place) - start for place in inside), length]
    return torch.cat([torch.arange(end - begin) for begin, end in pairwise(bounds)])


def mask_of(positions: torch.Tensor) -> torch.Tensor | None:
    """True where a token must not be seen: it comes later, or is of another document.

    Args:
        positions: [sequences, length], 0 where a document begins.

    Returns:
        [sequences, 1, length, length], for the query and the key, as Megatron's attention takes it; None where no
        document begins within a sequence, for which causal attention is enough and faster.
    """
    begins = positions[:, 1:] == 0
    if not begins.any():
        return None
    documents = torch.nn.functional.pad(begins, (1, 0)).cumsum(1)
    apart = documents[:, None, :, None] != documents[:, None, None, :]
    length = positions.size(1)
    return apart | torch.ones(length, length, dtype=torch.bool, device=positions.device).triu(1)


def as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a mask (True hides) adds to the scores of attention, as torch's kernels take it."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)


class HasParameters(Protocol):
    """A model, as far as its type is asked."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...


def bias_for(model: HasParameters, mask: torch.Tensor | None) -> torch.Tensor | None:
    """The one bias that all layers of a model share, in its type, and those of a teacher that it runs along. Of a mask
    of booleans each layer would make its own, and keep it for the backward pass.
    """
    return None if mask is None else as_bias(mask, next(model.parameters()).dtype)
