"""Forward KL divergence of the logits: the loss of the published recipe (arXiv 2408.11796)."""

from typing import ClassVar

from pydantic import Field

from compression_pipeline.config.architecture import Architecture

from .base import LossConfig, Needs


class LogitsKL(LossConfig):
    """KL(teacher || student) of the next-token distributions, per token, summed over the vocabulary."""

    implementation: ClassVar[str] = "compression_pipeline.losses.logits_kl:LogitsKLLoss"

    temperature: float = Field(
        default=1,
        gt=0,
        le=1000,
        description="Number that divides the logits of both models. The loss is not multiplied by its square.",
    )

    @property
    def words(self) -> str:
        return (
            "forward KL divergence from the teacher's to the student's next-token distribution, temperature "
            f"{self.temperature:g}"
        )

    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        return Needs(logits=True)
