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
    """
    share = token_share(values[0].numel(), of_tokens)
    weights = token_weights(losses, share, dynamic_factor(losses, values, share))
    return reduce(torch.add, [(value * weight).sum() for value, weight in zip(values, weights, strict=True)])


def token_share(tokens: int, of_tokens: Tensor | None) -> Tensor | float:
    """What a token counts in the mean over a batch of so many: a number, or [sequence, batch]; see `weighted_sum`."""
    return 1 / tokens if of_tokens is None else of_tokens.t() / tokens


def is_dynamic(loss: LossConfig) -> bool:
    """Whether what it counts depends on what it and the other losses are."""
    return loss.balance is Balance.DYNAMIC


def token_weights(
    losses: Sequence[LossConfig], share: Tensor | float, factor: Tensor | float = 1.0
) -> list[Tensor | float]:
    """What each loss of a token counts in the sum: a number, or what broadcasts to [sequence, batch].

    Args:
        share: `token_share`.
        factor: `dynamic_factor`, where there are dynamic losses.
    """
    return [loss.weight * share * (factor if is_dynamic(loss) else 1.0) for loss in losses]


def dynamic_factor(losses: Sequence[LossConfig], values: Sequence[Tensor], share: Tensor | float) -> Tensor | float:
    """What scales the dynamic losses in each sequence of a batch, [batch], without gradient; 1 where there are none.

    It is the sequence's losses on logits over its dynamic losses (alpha of arXiv 2407.14679, section 2.4; no gradient
    goes through it). It depends on nothing but the sequence. So the sum is the same however a batch is split into
    micro-batches and over ranks, and an artifact's key need not know. All dynamic losses have one factor together: with
    one of its own a loss that is nearly 0 (a student's embeddings that are still the teacher's) would have a gradient
    without bounds.

    `values`: as in `weighted_sum`.
    """
    if not any(map(is_dynamic, losses)):
        return 1.0
    terms = [(loss, (value.detach() * share).sum(dim=0)) for loss, value in zip(losses, values, strict=True)]
    on_logits = torch.stack([value for loss, value in terms if loss.compares_logits and not is_dynamic(loss)])
    others = torch.stack([value for loss, value in terms if is_dynamic(loss)]).sum(dim=0)
    return torch.where(others > 0, on_logits.sum(dim=0) / others, 1.0)
