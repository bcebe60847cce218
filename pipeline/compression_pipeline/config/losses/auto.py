"""The rule of the papers: logits alone, unless depth is cut a lot."""

from collections.abc import Sequence
from typing import ClassVar

from compression_pipeline.config.architecture import Architecture

from .base import Balance, LossConfig, Needs
from .embeddings import Embeddings
from .hidden_states import HiddenStates
from .logits_kl import LogitsKL

DEPTH_KEPT = 0.5
"""Share of the teacher's layers from which downwards depth is cut a lot."""


CHOSEN = (LogitsKL, HiddenStates, Embeddings)


class Auto(LossConfig):
    """Forward KL on logits; hidden states and embeddings too if half of the layers or more are cut.

    Source: arXiv 2407.14679, section 2.4 and best practice 6.
    """

    implementation: ClassVar[str] = ""  # a job computes what it stands for
    compares_logits: ClassVar[bool] = True

    @property
    def words(self) -> str:
        return "losses that the papers' rule chooses"

    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        each = [loss.needs(teacher, student) for loss in self.resolved(teacher, student)]
        return Needs(
            logits=any(needs.logits for needs in each),
            hidden=tuple(pair for needs in each for pair in needs.hidden),
            embeddings=any(needs.embeddings for needs in each),
        )

    def resolved(self, teacher: Architecture, student: Architecture) -> Sequence[LossConfig]:
        losses: list[LossConfig] = [LogitsKL(weight=self.weight, balance=self.balance)]
        if student.layers <= DEPTH_KEPT * teacher.layers:
            losses += [made(weight=self.weight, balance=Balance.DYNAMIC) for made in (HiddenStates, Embeddings)]
        return losses

    def reason(self, teacher: Architecture, student: Architecture) -> str:
        return f"Auto, because the student keeps {student.layers} of {teacher.layers} layers"
