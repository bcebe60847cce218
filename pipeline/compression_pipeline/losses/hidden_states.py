"""Distance of the outputs of pairs of layers."""

import torch
from torch import Tensor, nn

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.hidden_states import HiddenStates

from .base import Loss, Signals
from .states import Comparison


class HiddenStatesLoss(Loss):
    """Distance of the outputs of each pair of layers per token, a mean over the pairs. Each pair has a projection."""

    def __init__(self, config: HiddenStates, teacher: Architecture, student: Architecture) -> None:
        super().__init__()
        self._pairs = config.pairs(teacher, student)
        self.comparisons = nn.ModuleList(Comparison(config.distance, teacher, student) for _ in self._pairs)

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        distances = [
            comparison(student.hidden[mine], teacher.hidden[theirs])
            for comparison, (mine, theirs) in zip(self.comparisons, self._pairs, strict=True)
        ]
        return torch.stack(distances).mean(dim=0)
