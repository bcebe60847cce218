"""One score of many activations: aggregation over the tokens of each sequence, then over sequences.

What is kept from one forward pass to the next has the size of the scores, in float64, and says of all sequences so far
what is needed, exactly. So neither the size of a micro-batch nor the number of ranks changes a score.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from compression_pipeline.config import Aggregation, AggregationConfig

OverRanks: TypeAlias = Callable[[Tensor], Tensor]
"""The sum of a tensor over all ranks, on the CPU."""

PUBLISHED = AggregationConfig()
"""Mean over each sequence, L2 over the batch."""


def over_sequence(kind: Aggregation, activations: Tensor) -> Tensor:
    """[sequence, batch, channels] -> [batch, channels], float32."""
    values = activations.detach().float()
    if kind is Aggregation.MEAN:
        return values.abs().mean(dim=0)
    # torch's own vector_norm and var take four times as long along the first dimension.
    if kind is Aggregation.L2:
        return values.square().sum(dim=0).sqrt()
    return (values - values.mean(dim=0)).square_().mean(dim=0)


class OverBatch(ABC):
    """Aggregates what sequences gave, pass by pass, for several parts (layers, norms) of one number of channels."""

    @abstractmethod
    def add(self, part: int, values: Tensor) -> None:
        """Take [sequences, channels] of one part, float64."""

    @abstractmethod
    def total(self, over_ranks: OverRanks) -> Tensor:
        """[parts, channels] over everything seen by all ranks, float64 on the CPU. Every rank calls it."""


class Mean(OverBatch):
    """The mean of absolute values."""

    def __init__(self, zeros: Tensor) -> None:
        """`zeros`: [parts, channels]."""
        self._sums, self._counts = zeros.clone(), torch.zeros_like(zeros[:, :1])

    def add(self, part: int, values: Tensor) -> None:
        self._sums[part] += values.abs().sum(dim=0)
        self._counts[part] += len(values)

    def total(self, over_ranks: OverRanks) -> Tensor:
        return over_ranks(self._sums) / over_ranks(self._counts)


class L2(OverBatch):
    """The root of the sum of squares."""

    def __init__(self, zeros: Tensor) -> None:
        """`zeros`: [parts, channels]."""
        self._squares = zeros.clone()

    def add(self, part: int, values: Tensor) -> None:
        self._squares[part] += values.square().sum(dim=0)

    def total(self, over_ranks: OverRanks) -> Tensor:
        return over_ranks(self._squares).sqrt()


class Variance(OverBatch):
    """The mean square of the distance from the mean.

    Counts, means and squares of distances are merged pass by pass and rank by rank (Chan, Golub and LeVeque, 1979): a
    sum of squares less the square of a sum would lose what is small beside the mean.
    """

    def __init__(self, zeros: Tensor) -> None:
        """`zeros`: [parts, channels]."""
        self._counts, self._means, self._squares = torch.zeros_like(zeros[:, :1]), zeros.clone(), zeros.clone()

    def add(self, part: int, values: Tensor) -> None:
        before, count, mean = self._counts[part].clone(), len(values), values.mean(dim=0)
        after = before + count
        moved = mean - self._means[part]
        self._squares[part] += (values - mean).square().sum(dim=0) + moved.square() * (before * count / after)
        self._means[part] += moved * (count / after)
        self._counts[part] = after

    def total(self, over_ranks: OverRanks) -> Tensor:
        counts = over_ranks(self._counts)
        means = over_ranks(self._means * self._counts) / counts
        moved = self._means - means.to(self._means.device)
        return over_ranks(self._squares + self._counts * moved.square()) / counts


OVER_BATCH: dict[Aggregation, Callable[[Tensor], OverBatch]] = {
    Aggregation.MEAN: Mean,
    Aggregation.L2: L2,
    Aggregation.VARIANCE: Variance,
}


class Channels:
    """Scores of the channels of several parts of a model, from their activations."""

    def __init__(self, how: AggregationConfig, zeros: Tensor) -> None:
        """`zeros`: [parts, channels], float64 on the model's device."""
        self._sequence = how.sequence
        self._batch = OVER_BATCH[how.batch](zeros)

    def add(self, part: int, activations: Tensor) -> None:
        """Take [sequence, batch, channels] of one part."""
        self._batch.add(part, over_sequence(self._sequence, activations).double())

    def total(self, over_ranks: OverRanks) -> Tensor:
        """See `OverBatch.total`."""
        return self._batch.total(over_ranks)
