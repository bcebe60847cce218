"""The half of a loss that computes: what it is given, and what it gives."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from compression_pipeline.teacher_logits import Likeliest

from .words import WHOLE, Words


@dataclass(frozen=True)
class Signals:
    """One model's forward pass over a batch: its logits, and what else a loss asked for (`Needs`)."""

    logits: Tensor
    """[sequence, batch, vocabulary]; of no words where the loss needs none."""
    hidden: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    """Outputs of layers, counted from 1: [sequence, batch, hidden size]."""
    embeddings: Tensor | None = None
    """[sequence, batch, hidden size]."""
    labels: Tensor | None = None
    """The text's next tokens, [sequence, batch]."""
    words: Words = WHOLE
    """Those that the logits are of: with tensor parallelism a part of the vocabulary."""
    likeliest: Likeliest | None = None
    """Of a teacher that is not there (`distill.teacherLogits: Cached`): what is known of its logits, which are then of
    no words. Losses that are `of_likeliest` take it.
    """


def wide(tensor: Tensor) -> Tensor:
    """In float32, or what is wider: the type that losses are computed in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Loss(nn.Module, ABC):
    """Compares a student with its teacher, token by token.

    Made as `Loss(config, teacher, student)`: its settings and the two architectures. Parameters that it registers
    (projections) are trained and checkpointed with the student, and no part of what is exported. All ranks make them
    from one seed.
    """

    splits_vocabulary: ClassVar[bool] = False
    """Whether it is right where a rank has the logits of a part of the vocabulary alone (tensor parallelism): it sums
    over the vocabulary by `Signals.words` alone, and has no parameters that logits go through.
    """

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        """Loss of every token, [sequence, batch], without the weight. The teacher's signals have no gradient.

        A loss that needs nothing but logits and labels is given some tokens at a time, [tokens, 1, vocabulary]: the
        loss of one depends on no other.
        """
