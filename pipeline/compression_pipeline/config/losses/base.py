"""What a distillation loss says of itself, without torch: its settings, its needs, its words."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from compression_pipeline.config.architecture import Architecture
from compression_pipeline.config.members import Member


@dataclass(frozen=True)
class Needs:
    """What a loss compares; the engine captures nothing else."""

    logits: bool = False
    hidden: tuple[tuple[int, int], ...] = ()
    """Pairs of layers (the student's, the teacher's), counted from 1, whose outputs are compared."""
    embeddings: bool = False
    """The outputs of the embedding layers."""
    labels: bool = False
    """The logits of the student, and the text's next tokens."""

    @property
    def per_token(self) -> bool:
        """Whether it compares logits, or logits and labels, and nothing else: then an engine may give it some tokens at
        a time, and never has all logits.
        """
        return (self.logits or self.labels) and not (self.hidden or self.embeddings)


class Balance(StrEnum):
    """What the weight of a loss is relative to."""

    FIXED = "Fixed"
    DYNAMIC = "Dynamic"


class LossConfig(Member):
    """One term of the sum that a student is trained to lower."""

    implementation: ClassVar[str]
    """`module:class` of its other half, a `compression_pipeline.losses.Loss`."""

    compares_logits: ClassVar[bool] = False
    """Whether it compares the models' logits, whatever their sizes: what is Dynamic is scaled to such losses."""

    logit_copies: ClassVar[int | None] = None
    """Float32 copies of the logits that there are at once at most, beside both models' own; None: it uses none.
    Measured: `tests/pipeline/test_heads.py`.
    """

    of_likeliest: ClassVar[bool] = False
    """Whether it needs no more of the teacher than its likeliest tokens (`distill.teacherLogits: Cached`)."""

    weight: float = Field(default=1, gt=0, le=1e6, description="Weight of this loss in the sum.")
    balance: Balance = Field(
        default=Balance.FIXED,
        description="Fixed adds the loss times its weight. Dynamic first scales all such losses by one factor, in "
        "every sequence, so that they sum to those that compare logits (alpha of arXiv 2407.14679, section 2.4).",
    )

    @property
    def rest_temperature(self) -> float | None:
        """The temperature at which it needs the probability of all but the likeliest tokens, if it needs that."""
        return None

    @property
    @abstractmethod
    def words(self) -> str:
        """What it compares, for report and card: a phrase without article."""

    @abstractmethod
    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        """What it compares of models of these sizes."""

    def resolved(self, teacher: Architecture, student: Architecture) -> "Sequence[LossConfig]":
        """What it stands for with models of these sizes: itself, unless it is a rule."""
        return (self,)

    def reason(self, teacher: Architecture, student: Architecture) -> str:
        """Why it stands for that: a clause, empty if it is no rule."""
        return ""

    def faults(self, teacher: Architecture, student: Architecture) -> Iterator[tuple[str, str]]:
        """What is wrong with it for models of these sizes, as (field in camelCase, sentence)."""
        yield from ()
