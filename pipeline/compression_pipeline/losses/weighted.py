"""The sum of losses that a student is trained to lower, as every engine computes it."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from compression_pipeline.config import Balance, LossConfig


def weighted_sum(losses: Sequence[LossConfig], values: Sequence[Tensor], of_tokens: Tensor | None = None) -> Tensor:
    """The sum of weight times mean over all tokens, a scalar.

    `values`: what each of `losses`, which has no rules any more, gives for every token, [sequence, batch].
    `of_tokens`: what each token counts, [batch, sequence] (`Batch.weights`, by which masked ones count nothing and the
    mean is that of the others); None: all the same.

    Dynamic terms are scaled in each sequence of the batch, by its losses on logits over its dynamic losses (alpha of
    arXiv 2407.14679, section 2.4; no gradient goes through it). This factor depends on nothing but the sequence. So the
    sum is the same however a batch is split into micro-batches and over ranks, and an artifact's key need not know.
    All dynamic terms have one factor together: with one of its own a term that is nearly 0 (a student's embeddings that
    are still the teacher's) would have a gradient without bounds.
    """
    rows = [value.transpose(0, 1).contiguous() for value in values]  # [batch, sequence]
    if of_tokens is not None:
        rows = [row * of_tokens for row in rows]
    dynamic = [loss.balance is Balance.DYNAMIC for loss in losses]
    if any(dynamic):
        terms = list(zip(losses, rows, dynamic, strict=True))
        on_logits = _of_each_sequence([row for loss, row, scaled in terms if loss.compares_logits and not scaled])
        others = _of_each_sequence([row for _, row, scaled in terms if scaled])
        factor = torch.where(others > 0, on_logits / others, 1.0).unsqueeze(1)
        rows = [row * factor if scaled else row for _, row, scaled in terms]
    means = [
        row.mean() if loss.weight == 1 else loss.weight * row.mean() for loss, row in zip(losses, rows, strict=True)
    ]
    return reduce(torch.add, means)


def _of_each_sequence(rows: Sequence[Tensor]) -> Tensor:
    """The sum of the losses' means over tokens, [batch], without gradient."""
    return torch.stack([row.detach().mean(dim=1) for row in rows]).sum(dim=0)
