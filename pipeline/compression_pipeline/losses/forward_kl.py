"""Forward KL divergence between two rows of logits, fused: value and gradient in one go."""

from typing import Any, cast

import torch
from torch import Tensor


class ForwardKL(torch.autograd.Function):
    """KL(teacher || student) per row, summed over the vocabulary, at temperature 1.

    The gradient for the student's logits is softmax(student) - softmax(teacher), which is at hand in the forward pass
    already. So one tensor of the logits' size is kept for the backward pass, in the student's type, where log_softmax
    twice and kl_div keep three in float32 and walk the vocabulary once more.
    """

    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor) -> Tensor:
        """Logits [..., vocabulary]; returns [...], in float32 or what is wider."""
        wide = torch.promote_types(student.dtype, torch.float32)
        logs_teacher = torch.log_softmax(teacher, dim=-1, dtype=wide)
        logs_student = torch.log_softmax(student, dim=-1, dtype=wide)
        probabilities = logs_teacher.exp()
        loss = logs_teacher.sub_(logs_student).mul_(probabilities).sum(dim=-1)
        if context.needs_input_grad[0]:
            context.save_for_backward(logs_student.exp_().sub_(probabilities).to(student.dtype))
        return loss

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """d loss / d student logits; the teacher gets none."""
        (difference,) = context.saved_tensors
        return (difference * gradients[0].unsqueeze(-1)).to(difference.dtype), None


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats of every row: [..., vocabulary] twice -> [...], float32, never negative but for
    rounding.

    Source: arXiv 2407.14679, section 2.4 (logit distillation), temperature 1.
    """
    return cast("Tensor", ForwardKL.apply(student, teacher))
