"""Jensen-Shannon divergence on the logits."""

import math

import torch
from torch import Tensor

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.logits_jensen_shannon import LogitsJensenShannon

from .base import Loss, Signals
from .fused import fused
from .words import Words


def jensen_shannon(
    logs_student: Tensor, logs_teacher: Tensor, words: Words, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """(KL(t || m) + KL(s || m)) / 2 with m = (s + t) / 2; its gradient is s (log s - log m - KL(s || m)) / 2."""
    logs_middle = torch.logaddexp(logs_student, logs_teacher).sub_(math.log(2))
    from_teacher = words.sum(logs_teacher.exp() * logs_teacher.sub_(logs_middle))
    probabilities = logs_student.exp()
    difference = logs_student.sub_(logs_middle)
    from_student = words.sum(probabilities * difference)
    gradient = difference.sub_(from_student.unsqueeze(-1)).mul_(probabilities).mul_(0.5) if wanted else None
    return (from_teacher + from_student) / 2, gradient


class LogitsJensenShannonLoss(Loss):
    """Jensen-Shannon divergence per token in nats, at a temperature."""

    splits_vocabulary = True

    def __init__(self, config: LogitsJensenShannon, teacher: Architecture, student: Architecture) -> None:
        super().__init__()
        self._temperature = config.temperature

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return fused(student.logits, teacher.logits, jensen_shannon, self._temperature, student.words)
