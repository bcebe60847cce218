"""Losses of logits whose gradient is at hand in the forward pass: value and gradient in one go."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
"""(student's log-probabilities, the teacher's, whether the gradient is wanted) -> the loss of each row, and its
gradient for the student's logits. Both arguments are the rule's own: it may overwrite them.
"""


class _Fused(torch.autograd.Function):
    """One tensor of the logits' size is kept for the backward pass, in the student's type, where autograd would keep
    several in float32 and walk the vocabulary once more.
    """

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor, rule: Rule) -> Tensor:
        """Logits [..., vocabulary]; returns [...], in float32 or what is wider."""
        wide = torch.promote_types(student.dtype, torch.float32)
        logs_teacher = torch.log_softmax(teacher, dim=-1, dtype=wide)
        logs_student = torch.log_softmax(student, dim=-1, dtype=wide)
        loss, gradient = rule(logs_student, logs_teacher, context.needs_input_grad[0])
        if gradient is not None:
            context.save_for_backward(gradient.to(student.dtype))
        return loss

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """d loss / d student logits; the teacher gets none."""
        (gradient,) = context.saved_tensors
        return (gradient * gradients[0].unsqueeze(-1)).to(gradient.dtype), None, None


def fused(student: Tensor, teacher: Tensor, rule: Rule, temperature: float = 1) -> Tensor:
    """Loss of each row of logits by `rule`: [..., vocabulary] twice -> [...], float32."""
    if temperature != 1:  # a division copies the largest tensors there are
        student, teacher = student / temperature, teacher / temperature
    return cast("Tensor", _Fused.apply(student, teacher, rule))
