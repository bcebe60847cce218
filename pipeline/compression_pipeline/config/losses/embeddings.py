"""Outputs of the embedding layers."""

from typing import ClassVar

from compression_pipeline.config.architecture import Architecture

from .base import Needs
from .states import StatesLoss


class Embeddings(StatesLoss):
    """Distance of the outputs of the embedding layers, per token (arXiv 2407.14679, section 2.4)."""

    implementation: ClassVar[str] = "compression_pipeline.losses.embeddings:EmbeddingsLoss"

    @property
    def words(self) -> str:
        return f"{self.distance.words} of the embeddings"

    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        return Needs(embeddings=True)
