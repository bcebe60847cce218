"""What the results of steps say of a run and its students, as the status keeps it. Pure."""

from collections.abc import Callable, Mapping

from compression_operator.api.resolved import Resolved, ResolvedTasks
from compression_operator.api.status import (
    CompressionRunStatus,
    Evaluation,
    Step,
    StepState,
    StudentStatus,
    TeacherStatus,
    ValidationLoss,
)
from compression_pipeline.config import (
    PHASES,
    DistillResult,
    EvaluateResult,
    FinetuneResult,
    PrepareResult,
    PruneResult,
    TasksResult,
    number_runs,
)


def record_prepared(status: CompressionRunStatus, result: PrepareResult) -> CompressionRunStatus:
    """The status with what prepare found of the sources and the teacher."""
    # Losses stay: finetune stands if the content turns out to be what it was.
    before = status.teacher
    resolved = Resolved(
        key=result.key,
        teacher=result.resolved_teacher,
        dataset=result.resolved_dataset,
        sources=result.resolved_sources,
        train_tokens=result.train_tokens,
        validation_tokens=result.validation_tokens,
        learned_tokens=result.learned_tokens,
    )
    teacher = TeacherStatus(
        **result.teacher.model_dump(),
        parameter_count=result.teacher_parameters,
        validation_loss=before.validation_loss if before else None,
        corrected_validation_loss=before.corrected_validation_loss if before else None,
        evaluation=before.evaluation if before else None,
        corrected_evaluation=before.corrected_evaluation if before else None,
    )
    return status.model_copy(update={"resolved": resolved, "teacher": teacher})


def record_correction(status: CompressionRunStatus, result: FinetuneResult) -> CompressionRunStatus:
    """The status with the teacher's losses before and after its correction."""
    return _with_teacher_losses(status, result.teacher_loss, result.corrected_teacher_loss)


def derive_teacher_losses(status: CompressionRunStatus, student: StudentStatus) -> StudentStatus:
    """The student beside the teacher as it came and the corrected one."""
    # Distillation measured the corrected teacher; the teacher as it came is known from the correction.
    teacher = status.teacher
    losses = {
        "teacher": teacher.validation_loss if teacher else None,
        "corrected_teacher": teacher.corrected_validation_loss if teacher else None,
    }
    return _with_losses(student, losses)


def derive_exported_loss(status: CompressionRunStatus, student: StudentStatus) -> StudentStatus:
    """The student with the loss of the weights that are exported."""
    # The export may stand while its weights were measured otherwise since: the figure is distillation's.
    rounded = student.validation_loss.rounded or {}
    return _with_losses(student, {"exported": rounded.get(student.dtype) if student.dtype else None})


def derive_artifact(status: CompressionRunStatus, student: StudentStatus) -> StudentStatus:
    """The student with the artifact to publish: report's once there are scores to tell, export's until then."""
    delivered = [
        step.artifact
        for step in status.steps
        if step.student == student.name and PHASES[step.phase].delivers and step.state is StepState.SUCCEEDED
    ]
    return student.model_copy(update={"artifact": delivered[-1] if delivered else None})


def _with_losses(student: StudentStatus, losses: Mapping[str, float | None]) -> StudentStatus:
    return student.model_copy(update={"validation_loss": student.validation_loss.model_copy(update=losses)})


def forget_correction(status: CompressionRunStatus) -> CompressionRunStatus:
    """The status without the teacher's losses."""
    return _with_teacher_losses(status, None, None)


def _with_teacher_losses(
    status: CompressionRunStatus, teacher: float | None, corrected: float | None
) -> CompressionRunStatus:
    losses = {"validation_loss": teacher, "corrected_validation_loss": corrected}
    return status.model_copy(update={"teacher": status.teacher and status.teacher.model_copy(update=losses)})


def record_tasks(status: CompressionRunStatus, result: TasksResult) -> CompressionRunStatus:
    """The status with the tasks that were found."""
    found = ResolvedTasks(key=result.key, harness=result.harness, digests=result.digests)
    return status.model_copy(update={"tasks": found})


def recorder_of_scores(field: str) -> Callable[[CompressionRunStatus, EvaluateResult | None], CompressionRunStatus]:
    """What keeps a teacher's scores in this field of status.teacher; None: it has none."""

    def keep(status: CompressionRunStatus, result: EvaluateResult | None) -> CompressionRunStatus:
        told = Evaluation(tasks=result.tasks, generation=result.generation) if result else None
        return status.model_copy(update={"teacher": status.teacher and status.teacher.model_copy(update={field: told})})

    return keep


def kept_layers_in_words(result: PruneResult, step: Step) -> str | None:
    """The kept layers as runs of numbers, e.g. 1-15, 32."""
    return number_runs(result.kept_layers) or None


def validation_losses(result: DistillResult, step: Step) -> ValidationLoss:
    """What distillation measured of a student and of the teacher that it learnt from."""
    return ValidationLoss(
        teacher=result.teacher_loss,
        pruned=result.pruned_loss,
        distilled=result.distilled_loss,
        rounded=result.rounded_losses or None,
    )
