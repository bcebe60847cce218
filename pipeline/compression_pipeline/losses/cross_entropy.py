"""Cross-entropy of the text's next token."""

from typing import cast

from torch import Tensor
from torch.nn.functional import cross_entropy

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.cross_entropy import CrossEntropy

from .base import Loss, Signals, wide


class CrossEntropyLoss(Loss):
    """-log p(next token) per token in nats."""

    splits_vocabulary = True

    def __init__(self, config: CrossEntropy, teacher: Architecture, student: Architecture) -> None:
        super().__init__()

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        labels = cast("Tensor", student.labels)  # by what it needs
        if not student.words.whole:
            logits, tokens = wide(student.logits), labels.unsqueeze(-1)
            return student.words.log_normalizer(logits) - student.words.of(logits, tokens).squeeze(-1)
        return cross_entropy(wide(student.logits).flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
