"""What a distillation loss says of itself, without torch: its settings, its needs, its words."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
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


class LossConfig(Member):
    """One term of the sum that a student is trained to lower."""

    implementation: ClassVar[str]
    """`module:class` of its other half, a `compression_pipeline.losses.Loss`."""

    weight: float = Field(default=1, gt=0, le=1e6, description="Weight of this loss in the sum.")

    @property
    @abstractmethod
    def words(self) -> str:
        """What it compares, for report and card: a phrase without article."""

    @abstractmethod
    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        """What it compares of models of these sizes."""

    def faults(self, teacher: Architecture, student: Architecture) -> Iterator[tuple[str, str]]:
        """What is wrong with it for models of these sizes, as (field in camelCase, sentence)."""
        yield from ()
