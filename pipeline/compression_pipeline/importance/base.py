"""The two kinds of methods: estimators, which watch one shared forward pass, and measurements, which run the model
themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compression_pipeline.config import AggregationConfig, Architecture

from .aggregation import PUBLISHED, Channels

if TYPE_CHECKING:
    from compression_pipeline.text.batches import Batch

Scores = Mapping[str, Tensor]
"""Axis -> scores, float32 on the CPU, higher is more important.

hidden: [hidden size]; ffn: [layers, FFN size]; heads: [layers, heads]; layers: [layers]. Where layers were dropped in
blocks, layers.blocks: rows of first layer (from 1), layers, and what was measured without these, a loss unless
layers.higherIsBetter is 1; the first row, of no layers, is of the whole model.
"""


Batches = Iterable[tuple[Tensor, Tensor]]
"""A rank's calibration samples as (tokens, positions), each [sequences, sequence length]; it may be walked again."""


class HeldOut(Protocol):
    """A rank's sequences of the held-out text, in passes; they may be walked again."""

    def __len__(self) -> int:
        """Passes."""
        ...

    def __iter__(self) -> "Iterator[Batch]": ...


class Asked(Protocol):
    """A task that the model is scored by, without some of its layers. The ranks share the blocks of layers."""

    @property
    def rank(self) -> int: ...

    @property
    def ranks(self) -> int: ...

    def score(self, first: int, length: int) -> tuple[float, bool]:
        """The score without these layers (from 0), and whether a higher one is better."""
        ...


class Noted(Protocol):
    """How far a measurement has come: what earlier attempts at the step have noted, and what this one does."""

    def __iter__(self) -> Iterator[Any]: ...

    def write(self, note: Any) -> None:
        """Note it for the next attempt, as JSON, in place of what was noted before."""
        ...


class Unnoted:
    """Notes nothing."""

    def __iter__(self) -> Iterator[Any]:
        yield from ()

    def write(self, note: Any) -> None:
        """Forget it."""


@dataclass(frozen=True)
class Samples:
    """What importance is measured on: this rank's part of it."""

    batches: Batches
    """Of the training text."""
    held_out: HeldOut = ()
    tell: Callable[[int, int], object] = lambda done, total: None
    """Told how much of how much a measurement has done."""
    dropped: int | None = None
    """How many layers are to be cut by their scores; None where none are."""
    notes: Callable[[str], Noted] = lambda name: Unnoted()
    """Where the measurement of this name notes how far it is."""
    asked: Asked | None = None
    """For methods that measure by a task."""


class Measurement(ABC):
    """Scores the parts of one axis by running a GPTModel itself, e.g. without some of its layers."""

    def __init__(self, architecture: Architecture) -> None:
        """For a model of this architecture."""
        self.architecture = architecture

    @abstractmethod
    def scores(self, model: Any, samples: Samples) -> Tensor:
        """The scores over the samples of all ranks, float32 on the CPU; every rank calls it.

        The model is in eval mode, without gradients, and gives logits; it must be left as it was found.
        """

    def tables(self) -> Mapping[str, Tensor]:
        """What else was found, by name, for choice and report: `Scores` has it as <axis>.<name>."""
        return {}


class Estimator(ABC):
    """Watches the forward passes of a GPTModel and scores the parts of one axis."""

    def __init__(
        self, model: nn.Module, architecture: Architecture, aggregation: AggregationConfig = PUBLISHED
    ) -> None:
        """Hang hooks into `model`; call `close` when done. `aggregation`: of `channels`."""
        self.architecture = architecture
        self.aggregation = aggregation
        self.device = next(model.parameters()).device
        self._handles: list[Any] = []
        self.attach(model)

    @abstractmethod
    def attach(self, model: Any) -> None:
        """Register the hooks, with `hook`, and make the accumulators."""

    @abstractmethod
    def scores(self) -> Tensor:
        """The scores over everything seen so far by all ranks; every rank calls it."""

    def hook(self, module: nn.Module, function: Any, *, with_kwargs: bool = False) -> None:
        """Call `function` after every forward pass of `module`."""
        self._handles.append(module.register_forward_hook(function, with_kwargs=with_kwargs))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def zeros(self, *shape: int) -> Tensor:
        """An accumulator on the model's device. Double: sums over a thousand samples lose nothing."""
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def channels(self, parts: int, channels: int) -> Channels:
        """What scores the channels of several parts of the model, by the aggregation that is asked for."""
        return Channels(self.aggregation, self.zeros(parts, channels))

    def over_ranks(self, sums: Tensor) -> Tensor:
        """The sum over the data-parallel ranks, on the CPU; of each part over the ranks that have it."""
        return sum_over_ranks(sums)


def sum_over_ranks(sums: Tensor) -> Tensor:
    """The sum over the data-parallel ranks, on the CPU."""
    from megatron.core import parallel_state  # see `runtime`

    total = sums.clone()
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    return total.cpu()
