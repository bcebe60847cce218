"""Reverse KL divergence of the logits: it seeks modes where forward KL covers them."""

from typing import ClassVar

from .logits import TemperedLoss


class LogitsReverseKL(TemperedLoss):
    """KL(student || teacher) of the next-token distributions, per token, summed over the vocabulary."""

    implementation: ClassVar[str] = "compression_pipeline.losses.logits_reverse_kl:LogitsReverseKLLoss"

    @property
    def words(self) -> str:
        return (
            "reverse KL divergence from the student's to the teacher's next-token distribution, temperature "
            f"{self.temperature:g}"
        )
