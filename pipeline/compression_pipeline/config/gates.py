"""What a student must reach to be accepted (`spec.accept`). Pure."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from .base import ConfigModel, Record, Rule


class Verdict(Record):
    """What one criterion says of one student."""

    criterion: str = Field(description="Criterion of accept, e.g. maxValidationLoss.")
    limit: float = Field(description="What the criterion asks for.")
    measured: float | None = Field(default=None, description="What was measured. Unset until it is.")
    met: bool | None = Field(default=None, description="Whether the student meets the criterion. Unset until measured.")

    def __str__(self) -> str:
        """As a clause: "maxValidationLoss is 2.5 and 2.6134 was measured"."""
        found = "nothing was" if self.measured is None else f"{self.measured:.4f} was"
        return f"{self.criterion} is {self.limit:g} and {found} measured"


@dataclass(frozen=True)
class GateFigures:
    """The figures of a student that criteria judge, as far as they are known."""

    loss: float | None
    """Validation loss of the student, in nats per token."""
    teacher_loss: float | None
    """Of the teacher that it learnt from."""


class AcceptConfig(ConfigModel):
    """The gate of a student. A student that misses a criterion fails the run; its checkpoint is kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule.of(
            "",
            "needs at least one criterion: maxValidationLoss or maxLossOverTeacher",
            lambda accept: any(getattr(accept, field) is not None for field in CRITERIA),
            "has(self.maxValidationLoss) || has(self.maxLossOverTeacher)",
        ),
    )

    max_validation_loss: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Highest validation loss of the exported student, in nats per token.",
    )
    max_loss_over_teacher: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Highest amount by which the validation loss of the exported student is above that of the teacher "
        "that it learnt from (the corrected one if there is one), in nats per token.",
    )
    extend_steps: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Optimizer steps that distillation goes on for, once, if the student misses a criterion after "
        "distill.steps. The learning rate stays at distill.minLearningRate. The student is judged again after them. "
        "With extendSteps, accept shapes what distillation makes, so that a change of it distils again. Without it, a "
        "change of accept makes nothing anew.",
    )

    @property
    def shaping(self) -> "AcceptConfig | None":
        """What of it shapes the student: nothing, if it only judges."""
        return self if self.extend_steps is not None else None


def _at_most(field: str, limit: float | None, measured: float | None) -> Iterator[Verdict]:
    if limit is not None:
        met = None if measured is None else measured <= limit
        yield Verdict(criterion=field, limit=limit, measured=measured, met=met)


def _over_teacher(measured: GateFigures) -> float | None:
    if measured.loss is None or measured.teacher_loss is None:
        return None
    return measured.loss - measured.teacher_loss


CRITERIA: Mapping[str, Callable[[AcceptConfig, GateFigures], Iterator[Verdict]]] = {
    "max_validation_loss": lambda accept, measured: _at_most(
        "maxValidationLoss", accept.max_validation_loss, measured.loss
    ),
    "max_loss_over_teacher": lambda accept, measured: _at_most(
        "maxLossOverTeacher", accept.max_loss_over_teacher, _over_teacher(measured)
    ),
}
"""Every criterion: its field of AcceptConfig, and what it says of a student; nothing where it is not asked for."""


def verdicts(accept: AcceptConfig | None, measured: GateFigures) -> list[Verdict]:
    """What each criterion that is asked for says of a student with these figures."""
    if accept is None:
        return []
    return [verdict for judge in CRITERIA.values() for verdict in judge(accept, measured)]


def misses(accept: AcceptConfig | None, measured: GateFigures) -> bool:
    """Whether a student with these figures is known to miss a criterion."""
    return any(verdict.met is False for verdict in verdicts(accept, measured))
