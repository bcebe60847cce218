"""Forward KL divergence of the logits: the loss of the published recipe (arXiv 2408.11796)."""

from typing import ClassVar

from .logits import TemperedLoss


class LogitsKL(TemperedLoss):
    """KL(teacher || student) of the next-token distributions, per token, summed over the vocabulary."""

    implementation: ClassVar[str] = "compression_pipeline.losses.logits_kl:LogitsKLLoss"
    of_likeliest: ClassVar[bool] = True

    @property
    def rest_temperature(self) -> float:
        return self.temperature

    @property
    def words(self) -> str:
        return (
            "forward KL divergence from the teacher's to the student's next-token distribution, temperature "
            f"{self.temperature:g}"
        )
