"""A loss on logits that no chunk of tokens is enough for."""

from typing import ClassVar

from torch import Tensor

from compression_pipeline.config import Architecture, LossConfig, Needs
from compression_pipeline.losses import Loss, Signals


class Interested(LossConfig):
    """A loss that compares logits where states of a layer are large."""

    implementation: ClassVar[str] = f"{__name__}:InterestedLoss"
    compares_logits: ClassVar[bool] = True
    logit_copies: ClassVar[int | None] = 4

    @property
    def words(self) -> str:
        return "interest"

    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        return Needs(logits=True, labels=True, hidden=((1, 2),))


class InterestedLoss(Loss):
    """The half of it that computes."""

    def __init__(self, config: Interested, teacher: Architecture, student: Architecture) -> None:
        super().__init__()

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        assert student.labels is not None and student.labels.shape == student.logits.shape[:2]
        distance = (student.logits - teacher.logits).square().mean(dim=-1)
        return distance * (student.hidden[1].mean(dim=-1) - teacher.hidden[2].mean(dim=-1)).exp()
