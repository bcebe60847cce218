"""Losses on logits that are never there as a whole: output layers and losses, over chunks of tokens.

The gradients of the hidden states and of the student's output layer are made on the way. At once there are a chunk of
both models' logits, in which the gradient takes the student's place, and one gradient of the output layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from compression_pipeline.config import Chunks
from compression_pipeline.config.chunks import PART, even
from compression_pipeline.teacher_logits import Likeliest

from .base import Loss, Signals
from .words import WHOLE, Words


@dataclass(frozen=True)
class Head:
    """A model's output layer, and what goes into it."""

    hidden: Tensor
    """[sequence, batch, hidden size]."""
    weight: Tensor
    """[vocabulary, hidden size], or of the words that this rank has (`Heads.words`)."""

    def logits(self) -> Tensor:
        """All of them, [sequence, batch, vocabulary]."""
        return linear(self.hidden, self.weight)


class Heads:
    """Both models' output layers, and the losses of a batch that compare what they give: those whose `Needs` are
    `per_token`.
    """

    def __init__(
        self,
        losses: Sequence[Loss],
        student: Head,
        teacher: Head | Likeliest,
        labels: Tensor,
        chunks: Chunks,
        words: Words = WHOLE,
    ) -> None:
        """`teacher`: its output layer, or what is known of its logits, [tokens, k]. `labels`: the text's next tokens,
        [sequence, batch]; `words`: those that both output layers give.

        Where others have other words, the gradient of the hidden states is what comes from these alone.
        """
        self._words = words
        self._losses = losses
        self._parameters = [parameter for loss in losses for parameter in loss.parameters()]
        self._student, self._teacher, self._labels, self._chunks = student, teacher, labels, chunks

    @torch.no_grad()
    def values(self) -> Tensor:
        """Losses of every token, [losses, sequence, batch], float32, without gradient."""
        return self._by_chunks(None, None).view(-1, *self._labels.shape)

    def weighted(self, weights: Sequence[Tensor | float]) -> tuple[Tensor, Tensor]:
        """The sum of weight times loss over all losses and tokens, a scalar with a gradient; and the `values`.

        `weights`: one for each loss, which broadcasts to [sequence, batch] and gets no gradient. The gradients are
        made here, and the backward pass gives them away: it runs once.
        """
        shape, device = self._labels.shape, self._labels.device
        wide = torch.promote_types(self._student.hidden.dtype, torch.float32)
        each = [torch.as_tensor(weight, dtype=wide, device=device).expand(shape).flatten() for weight in weights]
        inputs = self._student.hidden, self._student.weight, *self._parameters
        total, values = cast("tuple[Tensor, Tensor]", _Weighted.apply(self._by_chunks, torch.stack(each), *inputs))
        return total, values.view(-1, *shape)

    def _by_chunks(self, weights: Tensor | None, gradients: Sequence[Tensor] | None) -> Tensor:
        """Losses of every token, [losses, tokens].

        Args:
            weights: what every token's losses count, [losses, tokens]; None: no gradient is wanted.
            gradients: zeros in the shapes of hidden states, output layer and the losses' parameters, to which the
                gradients of the weighted sum are added.
        """
        mine, matrix = self._student.hidden.detach().flatten(0, 1), self._student.weight.detach()
        labels, tokens = self._labels.flatten(), self._labels.numel()
        wide = torch.promote_types(mine.dtype, torch.float32)
        values = torch.empty(len(self._losses), tokens, dtype=wide, device=mine.device)
        most = even(tokens, self._chunks.product)
        buffer = mine.new_empty(most, len(matrix))
        teacher = (
            _Known(self._teacher)
            if isinstance(self._teacher, Likeliest)
            else _Computed(self._teacher, most, self._words)
        )
        for start in range(0, tokens, most):
            chunk = slice(start, min(start + most, tokens))
            logits = buffer[: chunk.stop - start]
            torch.mm(mine[chunk], matrix.t(), out=logits)
            teacher.turn_to(chunk)
            for first in range(start, chunk.stop, self._chunks.block):
                block = slice(first, min(first + self._chunks.block, chunk.stop))
                rows = slice(block.start - start, block.stop - start)
                signals = (
                    Signals(logits[rows, None], labels=labels[block, None], words=self._words),
                    teacher.signals(block),
                )
                if weights is None or gradients is None:
                    values[:, block] = self._losses_of(*signals)
                else:
                    values[:, block] = self._differentiated(*signals, weights[:, block], gradients[2:])
            if gradients is not None:  # in the logits there is their gradient now
                torch.mm(logits, matrix, out=gradients[0].flatten(0, 1)[chunk])
                _add_product(gradients[1], logits.t(), mine[chunk])
        return values

    def _losses_of(self, student: Signals, teacher: Signals) -> Tensor:
        return torch.stack([loss(student, teacher).squeeze(1) for loss in self._losses])

    def _differentiated(
        self, student: Signals, teacher: Signals, weights: Tensor, of_parameters: Sequence[Tensor]
    ) -> Tensor:
        """The losses of a block, [losses, tokens]. Their weighted sum's gradient overwrites the student's logits."""
        with torch.enable_grad():
            leaf = student.logits.detach().requires_grad_()
            values = self._losses_of(replace(student, logits=leaf), teacher)
            total = (values * weights).sum()
        found, *others = torch.autograd.grad(total, [leaf, *self._parameters])
        student.logits.copy_(found)
        for gradient, part in zip(of_parameters, others, strict=True):
            gradient.add_(part)
        return values.detach()


class _Computed:
    """A teacher's logits, computed chunk by chunk."""

    def __init__(self, head: Head, most: int, words: Words) -> None:
        """`most`: tokens of a chunk; `words`: those that the head gives."""
        self._words = words
        self._hidden, self._matrix = head.hidden.detach().flatten(0, 1), head.weight.detach()
        self._buffer = self._hidden.new_empty(most, len(self._matrix))
        self._start = 0

    def turn_to(self, chunk: slice) -> None:
        """Compute those of these tokens."""
        self._start = chunk.start
        torch.mm(self._hidden[chunk], self._matrix.t(), out=self._buffer[: chunk.stop - chunk.start])

    def signals(self, block: slice) -> Signals:
        """Of some tokens of the chunk."""
        rows = slice(block.start - self._start, block.stop - self._start)
        return Signals(self._buffer[rows, None], words=self._words)


class _Known:
    """What is known of a teacher's logits."""

    def __init__(self, likeliest: Likeliest) -> None:
        self._likeliest = likeliest

    def turn_to(self, chunk: slice) -> None:
        """Nothing is computed."""

    def signals(self, block: slice) -> Signals:
        """Of some tokens."""
        part = self._likeliest.block(block)
        return Signals(part.logs[..., :0], likeliest=part)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product of two matrices to a sum that may be in a wider type; then it is made in parts, which are small."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    most = max(1, PART // total.size(1))
    for part, rows in zip(total.split(most), left.split(most), strict=True):
        part.add_(rows @ right)


def _narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The values in another type, which takes their place in memory if it is narrower: what is written in order never
    reaches what is still to be read.
    """
    if dtype.itemsize >= values.dtype.itemsize:
        return values.to(dtype)
    wide, narrow = values.flatten(), values.flatten().view(dtype)[: values.numel()]
    for part, place in zip(wide.split(PART), narrow.split(PART), strict=True):
        place.copy_(part.to(dtype))
    return narrow.view(values.shape)


class _Weighted(torch.autograd.Function):
    """Value and gradients in one go."""

    @staticmethod
    def forward(
        context: Any, compute: Any, weights: Tensor, hidden: Tensor, matrix: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`compute`: `Heads._by_chunks`. The gradient of what all tokens share is summed in float32."""
        shared = [torch.zeros_like(each, dtype=weights.dtype) for each in (matrix, *parameters)]
        gradients = torch.empty_like(hidden, memory_format=torch.contiguous_format), *shared
        values = compute(weights, gradients)
        context.save_for_backward(*gradients)
        context.types = [each.dtype for each in (hidden, matrix, *parameters)]
        context.mark_non_differentiable(values)
        return (values * weights).sum(), values

    @staticmethod
    @once_differentiable
    def backward(context: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        """In place: as large as they are, there are no two of them."""
        gradients = [gradient.mul_(given[0]) for gradient in context.saved_tensors]
        return None, None, *(_narrowed(each, dtype) for each, dtype in zip(gradients, context.types, strict=True))
