"""What finished steps report, read from their jobs and written into the status. Pure."""

import math
from typing import Any, cast

from pydantic import ValidationError

from compression_operator.api.status import (
    CompressionRunStatus,
    Resolved,
    Step,
    StepState,
    StudentStatus,
    TeacherStatus,
    ValidationLoss,
)
from compression_pipeline.config import (
    RESULTS,
    DistillResult,
    ExitClass,
    ExportResult,
    FinetuneResult,
    Phase,
    PrepareResult,
    PruneResult,
    StepResult,
)

from .jobs import ObservedJob
from .plan import step_name

SAMPLE_LIMIT = 1000
"""Characters of a student's sample in the status."""


def read_result(phase: Phase, job: ObservedJob) -> StepResult | None:
    """What a job that is done reported; None where it isn't done or said nothing that can be read.

    Numbers that aren't finite are left out.
    """
    if job.ended_as is not ExitClass.DONE or job.termination is None:
        return None
    model = RESULTS[phase]
    said = {name: value for name, value in job.termination.result.items() if _finite(value)}
    try:
        return model.model_validate(said)
    except ValidationError:
        return None


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def record(status: CompressionRunStatus, step: Step, result: StepResult) -> CompressionRunStatus:
    """The status with the figures of a step that has just succeeded."""
    match result:
        case PrepareResult():
            return status.model_copy(update={"resolved": _resolved(result), "teacher": _teacher(status, result)})
        case FinetuneResult():
            losses = {
                "validation_loss": result.teacher_loss,
                "corrected_validation_loss": result.corrected_teacher_loss,
            }
            teacher = status.teacher and status.teacher.model_copy(update=losses)
            return status.model_copy(update={"teacher": teacher})
        case PruneResult():
            sizes = {"parameters": result.parameters, "compression_ratio": result.compression_ratio}
            return _update_student(status, step, sizes)
        case DistillResult():
            losses = ValidationLoss(
                teacher=result.teacher_loss,
                pruned=result.pruned_loss,
                distilled=result.distilled_loss,
                rounded=result.rounded_losses or None,
            )
            return _update_student(
                status, step, {"validation_loss": losses, "tokens_per_second": result.tokens_per_second}
            )
        case ExportResult():
            told = {"artifact": step.artifact, "sample": result.sample[:SAMPLE_LIMIT], "dtype": result.dtype}
            return _update_student(status, step, told)
        case _:
            raise TypeError(f"no phase reports a {type(result).__name__}")


def figures_that_stand(status: CompressionRunStatus, students: list[str]) -> CompressionRunStatus:
    """The status with just the figures of steps that are done, for the students of the plan, in their order."""
    teacher = status.teacher
    finetuned = status.step(step_name(Phase.FINETUNE))
    if teacher and not (finetuned and finetuned.state is StepState.SUCCEEDED):
        teacher = teacher.model_copy(update={"validation_loss": None, "corrected_validation_loss": None})
    shown = [_standing(status, status.student(name) or StudentStatus(name=name), teacher) for name in students]
    return status.model_copy(update={"teacher": teacher, "students": shown})


def _standing(status: CompressionRunStatus, student: StudentStatus, teacher: TeacherStatus | None) -> StudentStatus:
    def done(phase: Phase) -> bool:
        step = status.step(step_name(phase, student.name))
        return step is not None and step.state is StepState.SUCCEEDED

    changes: dict[str, Any] = {}
    if not done(Phase.PRUNE):
        changes |= {"parameters": None, "compression_ratio": None}
    losses = student.validation_loss
    if not done(Phase.DISTILL):
        changes["tokens_per_second"] = None
        losses = ValidationLoss()
    if status.step(step_name(Phase.FINETUNE)):
        # distill learnt from the corrected teacher; the teacher as it came is known from finetune.
        losses = losses.model_copy(
            update={
                "teacher": teacher.validation_loss if teacher else None,
                "corrected_teacher": teacher.corrected_validation_loss if teacher else None,
            }
        )
    if not done(Phase.EXPORT):
        changes |= {"artifact": None, "sample": None, "dtype": None}
    # Export may stand while its weights were measured otherwise since: the figure is distill's.
    dtype = student.dtype if done(Phase.EXPORT) else None
    losses = losses.model_copy(update={"exported": (losses.rounded or {}).get(dtype) if dtype else None})
    return student.model_copy(update={**changes, "validation_loss": losses})


def _update_student(status: CompressionRunStatus, step: Step, changes: dict[str, Any]) -> CompressionRunStatus:
    name = cast(str, step.student)
    updated = (status.student(name) or StudentStatus(name=name)).model_copy(update=changes)
    others = [student for student in status.students if student.name != name]
    return status.model_copy(update={"students": [*others, updated]})


def _resolved(result: PrepareResult) -> Resolved:
    return Resolved(
        key=result.key,
        teacher=result.resolved_teacher,
        dataset=result.resolved_dataset,
        train_tokens=result.train_tokens,
        validation_tokens=result.validation_tokens,
    )


def _teacher(status: CompressionRunStatus, result: PrepareResult) -> TeacherStatus:
    # Losses stay: finetune stands where the content turns out to be what it was.
    before = status.teacher
    return TeacherStatus(
        **result.teacher.model_dump(),
        parameter_count=result.teacher_parameters,
        validation_loss=before.validation_loss if before else None,
        corrected_validation_loss=before.corrected_validation_loss if before else None,
    )
