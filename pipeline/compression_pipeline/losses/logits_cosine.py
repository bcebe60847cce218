"""Cosine distance on the logits."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.logits_cosine import LogitsCosine

from .base import Loss, Signals, wide

EPSILON = 1e-8
"""The least length of a vector, as of torch's cosine similarity."""


class LogitsCosineLoss(Loss):
    """1 - cos(student's logits, teacher's logits) per token."""

    splits_vocabulary = True

    def __init__(self, config: LogitsCosine, teacher: Architecture, student: Architecture) -> None:
        super().__init__()

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        mine, theirs = wide(student.logits), wide(teacher.logits)
        if student.words.whole:
            return 1 - cosine_similarity(mine, theirs, dim=-1)
        sums = torch.stack([each.sum(dim=-1) for each in (mine * theirs, mine.square(), theirs.square())])
        product, *squares = student.words.over_ranks(sums)
        first, second = (square.clamp_min(EPSILON**2).sqrt() for square in squares)
        return 1 - product / (first * second)
