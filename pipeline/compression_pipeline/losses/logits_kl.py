"""Forward KL on the logits: the loss of the published recipe (arXiv 2408.11796), alone better than beside others."""

from torch import Tensor

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.logits_kl import LogitsKL

from .base import Loss, Signals
from .fused import fused
from .others import others_as_one
from .words import Words


def forward_kl(logs_student: Tensor, logs_teacher: Tensor, words: Words, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """KL(t || s) = sum t (log t - log s), never negative but for rounding; its gradient is s - t.

    Source: arXiv 2407.14679, section 2.4 (logit distillation).
    """
    probabilities = logs_teacher.exp()
    loss = words.sum(logs_teacher.sub_(logs_student).mul_(probabilities))
    return loss, logs_student.exp_().sub_(probabilities) if wanted else None


class LogitsKLLoss(Loss):
    """KL(teacher || student) per token in nats, at a temperature. As ModelOpt's, not multiplied by its square."""

    splits_vocabulary = True

    def __init__(self, config: LogitsKL, teacher: Architecture, student: Architecture) -> None:
        super().__init__()
        self._temperature = config.temperature

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        if teacher.likeliest is not None:
            return others_as_one(student.logits, teacher.likeliest, self._temperature)
        return fused(student.logits, teacher.logits, forward_kl, self._temperature, student.words)
