"""Forward KL divergence over the teacher's likeliest tokens alone."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from compression_pipeline.config.architecture import Architecture

from .logits import TemperedLoss


class LogitsTopKKL(TemperedLoss):
    """KL(teacher || student) of the distributions over the teacher's likeliest tokens, each made to sum to 1."""

    implementation: ClassVar[str] = "compression_pipeline.losses.logits_top_k_kl:LogitsTopKKLLoss"
    logit_copies: ClassVar[int | None] = 1
    of_likeliest: ClassVar[bool] = True

    top_k: int = Field(ge=1, le=1_048_576, description="Number of the teacher's likeliest tokens that are compared.")

    @property
    def words(self) -> str:
        return (
            f"forward KL divergence over the teacher's {self.top_k} likeliest tokens, temperature {self.temperature:g}"
        )

    def faults(self, teacher: Architecture, student: Architecture) -> Iterator[tuple[str, str]]:
        size = teacher.vocabulary_size
        if self.top_k > size:
            yield "topK", f"{self.top_k} is more than the {size} tokens of the teacher's vocabulary; lower it"
