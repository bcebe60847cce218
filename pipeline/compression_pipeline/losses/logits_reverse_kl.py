"""Reverse KL on the logits."""

from torch import Tensor

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.logits_reverse_kl import LogitsReverseKL

from .base import Loss, Signals
from .fused import fused
from .words import Words


def reverse_kl(logs_student: Tensor, logs_teacher: Tensor, words: Words, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """KL(s || t) = sum s (log s - log t); its gradient is s (log s - log t - KL)."""
    difference = logs_teacher.neg_().add_(logs_student)
    probabilities = logs_student.exp_()
    loss = words.sum(probabilities * difference)
    return loss, difference.sub_(loss.unsqueeze(-1)).mul_(probabilities) if wanted else None


class LogitsReverseKLLoss(Loss):
    """KL(student || teacher) per token in nats, at a temperature."""

    splits_vocabulary = True

    def __init__(self, config: LogitsReverseKL, teacher: Architecture, student: Architecture) -> None:
        super().__init__()
        self._temperature = config.temperature

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return fused(student.logits, teacher.logits, reverse_kl, self._temperature, student.words)
