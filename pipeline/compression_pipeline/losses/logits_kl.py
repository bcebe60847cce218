"""Forward KL on the logits: the loss of the published recipe (arXiv 2408.11796), alone better than beside others."""

from torch import Tensor

from compression_pipeline.config import Architecture, LogitsKL

from .base import Loss, Signals
from .forward_kl import forward_kl


class LogitsKLLoss(Loss):
    """KL(teacher || student) per token in nats, at a temperature. As ModelOpt's, not multiplied by its square."""

    def __init__(self, config: LogitsKL, teacher: Architecture, student: Architecture) -> None:
        super().__init__()
        self._temperature = config.temperature

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        if self._temperature == 1:  # a division would copy the largest tensors there are
            return forward_kl(student.logits, teacher.logits)
        return forward_kl(student.logits / self._temperature, teacher.logits / self._temperature)
