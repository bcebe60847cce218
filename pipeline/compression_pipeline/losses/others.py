"""Forward KL of which the teacher's likeliest tokens alone are known, and how likely all others are together."""

from typing import Any, cast

import torch
from torch import Tensor

from compression_pipeline.teacher_logits import Likeliest


class _OthersAsOne(torch.autograd.Function):
    """Value and gradient in one go, as `fused`."""

    @staticmethod
    def forward(
        context: Any, student: Tensor, tokens: Tensor, logs: Tensor, rest: Tensor, temperature: float
    ) -> Tensor:
        wide = torch.promote_types(student.dtype, torch.float32)
        scaled = student if temperature == 1 else student.to(wide) / temperature
        logs_student = torch.log_softmax(scaled, dim=-1, dtype=wide)
        found = logs_student.gather(-1, tokens)
        # What is left of the student's probabilities is summed up: 1 less the others would be rounding alone.
        left = logs_student.exp_().scatter_(-1, tokens, 0.0)
        others = left.sum(dim=-1).clamp_min(torch.finfo(wide).tiny)
        likely, unlikely = logs.exp(), rest.exp()
        loss = (logs - found).mul_(likely).sum(dim=-1)
        loss += torch.special.xlogy(unlikely, unlikely) - torch.special.xlogy(unlikely, others)
        if context.needs_input_grad[0]:
            left.mul_((1 - unlikely / others).unsqueeze(-1)).scatter_(-1, tokens, found.exp_().sub_(likely))
            context.save_for_backward((left if temperature == 1 else left.div_(temperature)).to(student.dtype))
        return loss

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """d loss / d student logits."""
        (gradient,) = context.saved_tensors
        scaled = torch.mul(gradient, gradients[0].unsqueeze(-1), out=torch.empty_like(gradient))
        return scaled, None, None, None, None


def others_as_one(student: Tensor, teacher: Likeliest, temperature: float) -> Tensor:
    """KL(t || s) of the distributions over the teacher's likeliest tokens and all others as one: [..., vocabulary] ->
    [...], float32.

    By the log-sum inequality it is never above the KL of all tokens, and less by the probability of the others times
    the KL among them. Its gradient is s - t at the likeliest tokens, and s (1 - t' / s') at the others, where t' and s'
    are their sums: no token is pushed down for not having been kept, as it would be were t made to sum to 1 without
    them (arXiv 2503.16870, section 3).
    """
    logs, rest = teacher.at(temperature)
    return cast("Tensor", _OthersAsOne.apply(student, teacher.tokens, logs, rest, temperature))
