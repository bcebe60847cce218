"""Losses of logits whose gradient is at hand in the forward pass: value and gradient in one go."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .words import WHOLE, Words

Rule = Callable[[Tensor, Tensor, Words, bool], tuple[Tensor, Tensor | None]]
"""(student's log-probabilities, the teacher's, of which words they are, whether the gradient is wanted) -> the loss of
each row, and its gradient for the student's logits. The first two are the rule's own: it may overwrite them.
"""


class _Fused(torch.autograd.Function):
    """One tensor of the logits' size is kept for the backward pass, in the student's type, where autograd would keep
    several in float32 and walk the vocabulary once more.
    """

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor, rule: Rule, temperature: float, words: Words) -> Tensor:
        """Logits [..., vocabulary]; returns [...], in float32 or what is wider."""
        logs_teacher, logs_student = _logs(teacher, temperature, words), _logs(student, temperature, words)
        loss, gradient = rule(logs_student, logs_teacher, words, context.needs_input_grad[0])
        if gradient is not None:
            gradient = gradient if temperature == 1 else gradient.div_(temperature)
            context.save_for_backward(gradient.to(student.dtype))
        return loss

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """d loss / d student logits; the teacher gets none."""
        (gradient,) = context.saved_tensors
        # Not `gradient * scale`: of bfloat16 and float32 that makes a float32 of the logits' size.
        return torch.mul(gradient, gradients[0].unsqueeze(-1), out=torch.empty_like(gradient)), None, None, None, None


def _logs(logits: Tensor, temperature: float, words: Words) -> Tensor:
    """Log-probabilities, in float32 or what is wider."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    if temperature == 1:  # a division copies the largest tensors there are
        return words.log_softmax(logits, wide)
    return words.log_softmax(logits.to(wide) / temperature, wide)


def fused(student: Tensor, teacher: Tensor, rule: Rule, temperature: float = 1, words: Words = WHOLE) -> Tensor:
    """Loss of each row of logits of these words by `rule`: [..., words] twice -> [...], float32."""
    return cast("Tensor", _Fused.apply(student, teacher, rule, temperature, words))
