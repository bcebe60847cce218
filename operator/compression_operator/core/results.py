"""What finished steps report, read from their jobs and written into the status. Pure."""

import math
from typing import Any

from pydantic import ValidationError

from compression_operator.api.status import MOST_FIGURES, CompressionRunStatus, Step, StepState, StudentStatus
from compression_pipeline.config import PHASES, ExitClass, Phase, StepResult, figures_of

from .jobs import ObservedJob
from .phase_steps import STEPS
from .plan import step_name


def read_result(phase: Phase, job: ObservedJob) -> StepResult | None:
    """What a job that is done reported; None where it isn't done or said nothing that can be read.

    Numbers that aren't finite are left out.
    """
    if job.ended_as is not ExitClass.DONE or job.termination is None:
        return None
    model = PHASES[phase].result
    said = {name: value for name, value in job.termination.result.items() if _finite(value)}
    try:
        return model.model_validate(said)
    except ValidationError:
        return None


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def record(status: CompressionRunStatus, step: Step, result: StepResult) -> CompressionRunStatus:
    """The status with the figures of a step that has just succeeded."""
    steps = STEPS[step.phase]
    recorded = steps.record(status, result)
    if step.student is None:
        return recorded
    student = recorded.student(step.student) or StudentStatus(name=step.student)
    figures = {name: read(result, step) for name, read in steps.student_figures.items()}
    if not figures:
        kept = {**_figures_without(student, step.phase), **_numbers(step.phase, result)}
        figures = {"figures": dict(list(kept.items())[:MOST_FIGURES]) or None}
    updated = student.model_copy(update=figures)
    others = [student for student in recorded.students if student.name != step.student]
    return recorded.model_copy(update={"students": [*others, updated]})


def _numbers(phase: Phase, result: StepResult) -> dict[str, float]:
    """What a phase without fields of its own in the status reported."""
    numbers = ((figure.name, figure.value) for figure in figures_of(result))
    return {f"{phase}.{name}": value for name, value in numbers if not isinstance(value, str | bool)}


def _figures_without(student: StudentStatus, *phases: Phase) -> dict[str, float]:
    return {name: value for name, value in (student.figures or {}).items() if name.partition(".")[0] not in phases}


def figures_that_stand(status: CompressionRunStatus, students: list[str]) -> CompressionRunStatus:
    """The status with just the figures of steps that are done, for the students of the plan, in their order."""
    for phase, steps in STEPS.items():
        if not PHASES[phase].per_student and not _is_done(status, phase, None):
            status = steps.forget(status)
    shown = [_standing(status, status.student(name) or StudentStatus(name=name)) for name in students]
    return status.model_copy(update={"students": shown})


def _is_done(status: CompressionRunStatus, phase: Phase, student: str | None) -> bool:
    step = status.step(step_name(phase, student))
    return step is not None and step.state is StepState.SUCCEEDED


def _standing(status: CompressionRunStatus, student: StudentStatus) -> StudentStatus:
    undone = [phase for phase in STEPS if PHASES[phase].per_student and not _is_done(status, phase, student.name)]
    blank = StudentStatus(name=student.name)
    changes = {name: getattr(blank, name) for phase in undone for name in STEPS[phase].student_figures}
    stands = student.model_copy(update=changes | {"figures": _figures_without(student, *undone) or None})
    for phase, steps in STEPS.items():
        if status.step(step_name(phase, student.name if PHASES[phase].per_student else None)):
            stands = steps.derive(status, stands)
    return stands
