"""Jensen-Shannon divergence of the logits: symmetric, and never more than log 2."""

from typing import ClassVar

from .logits import TemperedLoss


class LogitsJensenShannon(TemperedLoss):
    """Mean of the two KL divergences to the mean of both next-token distributions, per token."""

    implementation: ClassVar[str] = "compression_pipeline.losses.logits_jensen_shannon:LogitsJensenShannonLoss"
    logit_copies: ClassVar[int | None] = 5

    @property
    def words(self) -> str:
        return f"Jensen-Shannon divergence of both next-token distributions, temperature {self.temperature:g}"
