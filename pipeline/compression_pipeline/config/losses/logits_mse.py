"""Squared error of the logits."""

from typing import ClassVar

from .logits import LogitsLoss


class LogitsMSE(LogitsLoss):
    """Squared difference of the logits, a mean over the vocabulary, per token."""

    implementation: ClassVar[str] = "compression_pipeline.losses.logits_mse:LogitsMSELoss"
    logit_copies: ClassVar[int | None] = 5

    @property
    def words(self) -> str:
        return "mean squared error of the logits"
