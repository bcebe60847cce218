"""Layers: the score in a task without each contiguous block of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.sizing.sweep import blocks_of

from .base import Measurement, Samples, sum_over_ranks
from .blocks import block_table, note_of, resumed


class TaskScore(Measurement):
    """The sweep of the Llama-3.1-Minitron post by a task (its figure 6): the score of the model without layers a to
    a + n - 1, for every a, and for n of 1, 2, 4, 8, ... and what is to be cut.

    The ranks share the blocks. A rank that is interrupted goes on with its next block.
    """

    _tables: Mapping[str, Tensor]

    def scores(self, model: Any, samples: Samples) -> Tensor:
        """[layers]: how much worse the score is without each layer alone."""
        blocks = blocks_of(self.architecture.layers, samples.dropped)
        every = [(0, 0), *blocks]
        if samples.asked is None:
            raise ValueError("a task is needed to rank layers by")  # the phase refuses such a job
        mine = range(samples.asked.rank, len(every), samples.asked.ranks)
        shared, notes = [every[index] for index in mine], samples.notes("Task")
        done, found = resumed(notes, shared, 1, len(every) + 1)  # scores, and in how many of them more is better
        for index in mine[done:]:
            found[index], higher = samples.asked.score(*every[index])
            found[-1] += higher
            done += 1
            notes.write(note_of(shared, 1, done, found))
            samples.tell(done, len(shared))
        device = next(model.parameters()).device
        *values, higher = sum_over_ranks(torch.tensor(found, dtype=torch.float64, device=device)).tolist()
        whole, *without = values
        self._tables = {
            "blocks": block_table(blocks, whole, without),
            "higherIsBetter": torch.tensor([float(higher > 0)]),
        }
        sign = 1 if higher else -1
        alone = [sign * (whole - score) for (_, length), score in zip(blocks, without, strict=True) if length == 1]
        return torch.tensor(alone, dtype=torch.float32)

    def tables(self) -> Mapping[str, Tensor]:
        return self._tables
