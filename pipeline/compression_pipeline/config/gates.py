"""What a student must reach to be accepted (`spec.accept`). Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from .base import ConfigModel, Record, Rule
from .tasks import MOST_TASKS, TaskScore


class Verdict(Record):
    """What one criterion says of one student."""

    criterion: str = Field(description="Criterion of accept, e.g. maxValidationLoss or tasks.hellaswag.")
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
    tasks: Sequence[TaskScore] = ()
    """Its scores."""


class TaskGate(ConfigModel):
    """The score that a student must reach in one task."""

    name: str = Field(min_length=1, max_length=128, description="Name of a task of evaluate.tasks.")
    score: float = Field(
        ge=-1e9,
        le=1e9,
        description="Lowest score that is accepted, in the task's metric; the highest if less is better there.",
    )


class AcceptConfig(ConfigModel):
    """The gate of a student. A student that misses a criterion fails the run; its checkpoint is kept."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule.of(
            "",
            "needs at least one criterion: maxValidationLoss, maxLossOverTeacher or tasks",
            lambda accept: accept.judges_loss or bool(accept.tasks),
            "has(self.maxValidationLoss) || has(self.maxLossOverTeacher) || (has(self.tasks) && size(self.tasks) > 0)",
        ),
        Rule.of(
            "extendSteps",
            "needs maxValidationLoss or maxLossOverTeacher, because tasks are measured after distillation",
            lambda accept: accept.extend_steps is None or accept.judges_loss or not accept.tasks,
            "!has(self.extendSteps) || has(self.maxValidationLoss) || has(self.maxLossOverTeacher) "
            "|| !has(self.tasks) || size(self.tasks) == 0",
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
    tasks: Annotated[list[TaskGate], Field(max_length=MOST_TASKS)] = Field(
        default=[],
        description="Scores that the student must reach. Each task is one of evaluate.tasks.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    extend_steps: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Optimizer steps that distillation goes on for, once, if the student misses a criterion of the "
        "loss after distill.steps. The learning rate stays at distill.minLearningRate. The student is judged again "
        "after them. Whether to go on is decided by the trained weights; the gate itself by those rounded to "
        "export.dtype. "
        "With extendSteps, accept shapes what distillation makes, so that a change of it distils again. Without it, a "
        "change of accept makes nothing anew.",
    )

    @property
    def shaping(self) -> "AcceptConfig | None":
        """What of it shapes the student: nothing, if it only judges."""
        return self.model_copy(update={"tasks": []}) if self.extend_steps is not None else None

    @property
    def judges_loss(self) -> bool:
        """Whether it has a criterion that is known once a student is distilled."""
        return self.max_validation_loss is not None or self.max_loss_over_teacher is not None


def _at_most(field: str, limit: float | None, measured: float | None) -> Iterator[Verdict]:
    if limit is not None:
        met = None if measured is None else measured <= limit
        yield Verdict(criterion=field, limit=limit, measured=measured, met=met)


def _over_teacher(measured: GateFigures) -> float | None:
    if measured.loss is None or measured.teacher_loss is None:
        return None
    return measured.loss - measured.teacher_loss


def _scores(accept: AcceptConfig, measured: GateFigures) -> Iterator[Verdict]:
    scores = {score.name: score for score in measured.tasks}
    for gate in accept.tasks:
        found = scores.get(gate.name)
        met = None
        if found is not None:
            met = found.score >= gate.score if found.higher_is_better else found.score <= gate.score
        yield Verdict(
            criterion=f"tasks.{gate.name}", limit=gate.score, measured=None if found is None else found.score, met=met
        )


CRITERIA: Mapping[str, Callable[[AcceptConfig, GateFigures], Iterator[Verdict]]] = {
    "max_validation_loss": lambda accept, measured: _at_most(
        "maxValidationLoss", accept.max_validation_loss, measured.loss
    ),
    "max_loss_over_teacher": lambda accept, measured: _at_most(
        "maxLossOverTeacher", accept.max_loss_over_teacher, _over_teacher(measured)
    ),
    "tasks": _scores,
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
