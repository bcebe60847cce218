"""Cosine distance of the logits."""

from typing import ClassVar

from .logits import LogitsLoss


class LogitsCosine(LogitsLoss):
    """1 - cos(student's logits, teacher's logits), per token."""

    implementation: ClassVar[str] = "compression_pipeline.losses.logits_cosine:LogitsCosineLoss"
    logit_copies: ClassVar[int | None] = 6

    @property
    def words(self) -> str:
        return "cosine distance of the logits"
