"""Forward KL on the logits of the teacher's likeliest tokens."""

from torch import Tensor

from compression_pipeline.config import Architecture
from compression_pipeline.config.losses.logits_top_k_kl import LogitsTopKKL

from .base import Loss, Signals
from .fused import fused
from .logits_kl import forward_kl


class LogitsTopKKLLoss(Loss):
    """KL(teacher || student) per token in nats, both renormalized over the teacher's top k. As ModelOpt's."""

    splits_vocabulary = True

    def __init__(self, config: LogitsTopKKL, teacher: Architecture, student: Architecture) -> None:
        super().__init__()
        self._temperature, self._top_k = config.temperature, config.top_k

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        if teacher.likeliest is not None:
            known = teacher.likeliest
            likeliest, tokens = known.logs[..., : self._top_k], known.tokens[..., : self._top_k]
        else:
            likeliest, tokens = teacher.words.likeliest(teacher.logits, self._top_k)
        # Every rank has all k of them.
        return fused(student.words.of(student.logits, tokens), likeliest, forward_kl, self._temperature)
