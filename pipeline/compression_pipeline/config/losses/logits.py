"""What the losses that compare logits share."""

from typing import ClassVar

from pydantic import Field

from compression_pipeline.config.architecture import Architecture

from .base import LossConfig, Needs


class LogitsLoss(LossConfig):
    """Compares the logits of the two models, token by token."""

    compares_logits: ClassVar[bool] = True
    logit_copies: ClassVar[int | None] = 3

    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        return Needs(logits=True)


class TemperedLoss(LogitsLoss):
    """Compares next-token distributions, softmax(logits / temperature)."""

    temperature: float = Field(
        default=1,
        gt=0,
        le=1000,
        description="Number that divides the logits of both models. The loss is not multiplied by its square.",
    )
