"""Squared error on the logits."""

from torch import Tensor

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.logits_mse import LogitsMSE

from .base import Loss, Signals, wide


class LogitsMSELoss(Loss):
    """Squared difference of the logits per token, a mean over the vocabulary."""

    splits_vocabulary = True

    def __init__(self, config: LogitsMSE, teacher: Architecture, student: Architecture) -> None:
        super().__init__()

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return student.words.mean((wide(student.logits) - teacher.logits).square())
