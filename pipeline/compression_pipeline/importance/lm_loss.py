"""Layers: the loss of held-out text without each contiguous block of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression_pipeline.sizing.sweep import blocks_of
from compression_pipeline.text.isolation import bias_for

from .base import Measurement, Samples, sum_over_ranks
from .blocks import block_table, note_of, resumed

if TYPE_CHECKING:
    from compression_pipeline.text.batches import Batch


class LMLoss(Measurement):
    """The sweep of the Llama-3.1-Minitron post (its figure 5; arXiv 2408.11796, section 3.2): the mean loss in nats per
    token of the model without layers a to a + n - 1, for every a, and for n of 1, 2, 4, 8, ... and what is to be cut.

    A batch goes through the whole model once. What enters each layer is kept, so that a model without a block is run
    from behind that block on: of L layers that is less than half of each pass, and the memory of one batch's L hidden
    states. The model is never loaded again, nor changed. A rank that is interrupted goes on with the next block.
    """

    _blocks: Tensor

    def scores(self, model: Any, samples: Samples) -> Tensor:
        """[layers]: how much the loss rises without each layer alone."""
        count = self.architecture.layers
        blocks, passes, notes = blocks_of(count, samples.dropped), len(samples.held_out), samples.notes("LMLoss")
        done, noted = resumed(notes, blocks, passes, len(blocks) + 2)
        device = next(model.parameters()).device
        sums = torch.tensor(noted, dtype=torch.float64, device=device)  # the whole model's, blocks', tokens
        begun, skipped = divmod(done, max(len(blocks), 1))
        for number, batch in enumerate(samples.held_out):
            if number < begun:
                continue
            entering: list[Tensor | None] = [None] * count
            bias = bias_for(model, batch.mask)  # of all blocks
            with _watched(model, entering):
                losses = model(batch.tokens, batch.positions, bias, labels=batch.labels)
            if number > begun or not skipped:  # a pass that was begun has these in its sums
                sums[0] += _sum(losses, batch)
                sums[-1] += losses.numel() if batch.weights is None else batch.weights.double().sum()
            for index, (first, length) in enumerate(blocks, start=1):
                if number * len(blocks) + index <= done:
                    continue
                if length == 1:  # the shortest block that begins there: no longer needed is what entered before
                    entering[:first] = [None] * first
                with _only(model, first + length):
                    losses = model(
                        batch.tokens, batch.positions, bias, labels=batch.labels, decoder_input=entering[first]
                    )
                sums[index] += _sum(losses, batch)
                done += 1
                notes.write(note_of(blocks, passes, done, sums.tolist()))
                samples.tell(done, passes * len(blocks))
        *found, tokens = sum_over_ranks(sums).tolist()
        whole, *without = [value / tokens for value in found]
        self._blocks = block_table(blocks, whole, without)
        alone = [loss - whole for (_, length), loss in zip(blocks, without, strict=True) if length == 1]
        return torch.tensor(alone, dtype=torch.float32)

    def tables(self) -> Mapping[str, Tensor]:
        return {"blocks": self._blocks}


def _sum(losses: Tensor, batch: "Batch") -> Tensor:
    """Of the tokens that are learned, as a validation loss has it."""
    return losses.double().sum() if batch.weights is None else (losses.double() * batch.weights).sum()


@contextmanager
def _watched(model: Any, entering: list[Tensor | None]) -> Iterator[None]:
    """Keep what enters each layer: [sequence, batch, hidden]."""

    def keep(index: int, inputs: Any, named: Mapping[str, Any]) -> None:
        entering[index] = named["hidden_states"] if "hidden_states" in named else inputs[0]

    handles = [
        layer.register_forward_pre_hook(
            lambda _, inputs, named, index=index: keep(index, inputs, named), with_kwargs=True
        )
        for index, layer in enumerate(model.decoder.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _only(model: Any, first: int) -> Iterator[None]:
    """The model with its layers from `first` on alone; what enters them is given as the decoder's input."""
    layers = model.decoder.layers
    model.decoder.layers = nn.ModuleList(list(layers)[first:])
    try:
        yield
    finally:
        model.decoder.layers = layers
