"""Cosine distance on the logits."""

from torch import Tensor
from torch.nn.functional import cosine_similarity

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.logits_cosine import LogitsCosine

from .base import Loss, Signals, wide


class LogitsCosineLoss(Loss):
    """1 - cos(student's logits, teacher's logits) per token."""

    def __init__(self, config: LogitsCosine, teacher: Architecture, student: Architecture) -> None:
        super().__init__()

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return 1 - cosine_similarity(wide(student.logits), wide(teacher.logits), dim=-1)
