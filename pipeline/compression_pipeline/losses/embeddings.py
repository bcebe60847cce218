"""Distance of the outputs of the embedding layers."""

from torch import Tensor

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.embeddings import Embeddings

from .base import Loss, Signals
from .states import Comparison


class EmbeddingsLoss(Loss):
    """Distance of both models' embeddings per token."""

    def __init__(self, config: Embeddings, teacher: Architecture, student: Architecture) -> None:
        super().__init__()
        self.comparison = Comparison(config.distance, teacher, student)

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return self.comparison(student.embeddings, teacher.embeddings)
