"""Forward KL divergence over the teacher's likeliest words alone."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from compression_pipeline.config.architecture import Architecture

from .logits import TemperedLoss


class LogitsTopKKL(TemperedLoss):
    """KL(teacher || student) of the distributions over the teacher's likeliest words, each made to sum to 1."""

    implementation: ClassVar[str] = "compression_pipeline.losses.logits_top_k_kl:LogitsTopKKLLoss"

    top_k: int = Field(ge=1, le=1_048_576, description="Number of the teacher's likeliest words that are compared.")

    @property
    def words(self) -> str:
        return (
            f"forward KL divergence over the teacher's {self.top_k} likeliest words, temperature {self.temperature:g}"
        )

    def faults(self, teacher: Architecture, student: Architecture) -> Iterator[tuple[str, str]]:
        if self.top_k > teacher.vocabulary_size:
            yield "topK", f"{self.top_k} is more than the teacher's {teacher.vocabulary_size} words; lower it"
