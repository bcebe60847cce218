"""Cross-entropy of the next token: the language-model loss, which does not ask the teacher."""

from typing import ClassVar

from compression_pipeline.config.architecture import Architecture

from .base import LossConfig, Needs


class CrossEntropy(LossConfig):
    """-log of the probability that the student gives the text's next token."""

    implementation: ClassVar[str] = "compression_pipeline.losses.cross_entropy:CrossEntropyLoss"
    logit_copies: ClassVar[int | None] = 3
    of_likeliest: ClassVar[bool] = True

    @property
    def words(self) -> str:
        return "cross-entropy of the text's next token"

    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        return Needs(labels=True)
