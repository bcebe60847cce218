"""What the losses that compare states share: the projection of a narrower student, and the distances."""

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.states import Distance

from .base import wide


class Comparison(nn.Module):
    """Distance of two states of a token: [..., student's width], [..., teacher's width] -> [...], float32."""

    def __init__(self, distance: Distance, teacher: Architecture, student: Architecture) -> None:
        super().__init__()
        same = student.hidden_size == teacher.hidden_size
        self.projection = None if same else nn.Linear(student.hidden_size, teacher.hidden_size, bias=False)
        self._distance = distance

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        mine = wide(student if self.projection is None else self.projection(student))
        if self._distance is Distance.MSE:
            return (mine - teacher).square().mean(dim=-1)
        return 1 - cosine_similarity(mine, wide(teacher), dim=-1)
