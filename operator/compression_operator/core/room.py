"""Room in the store: what each step puts there, told before it starts. Pure."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from compression_operator.api.run import CompressionRun
from compression_operator.api.spec import CompressionRunSpec
from compression_operator.api.status import CompressionRunStatus
from compression_pipeline.config import (
    Architecture,
    Candidate,
    DistillConfig,
    JobConfig,
    resolved_losses,
    student_architecture,
    student_faults,
)
from compression_pipeline.sizing import loss_parameters

from .jobs import Job

NOTHING_SEARCHED: Mapping[str, Architecture] = MappingProxyType({})


def shapes_of(
    spec: CompressionRunSpec, teacher: Architecture, searched: Mapping[str, Architecture] = NOTHING_SEARCHED
) -> dict[str, Architecture]:
    """By student, but for those that cannot be made of the teacher. `searched`: shapes that were found for targets;
    until then the first candidate stands for them.
    """
    return {
        student.name: searched.get(student.name) or student_architecture(teacher, student.prune)
        for student in spec.students
        if not any(student_faults(teacher, student.prune))
    }


def chosen(candidates: Sequence[Candidate], teacher: Architecture) -> Architecture:
    """The student that a search has found the best."""
    return candidates[0].shape.architecture(teacher)


def searched_in(status: CompressionRunStatus) -> Mapping[str, Architecture]:
    """By student: the shape that a search has found. None while the teacher isn't known."""
    teacher = status.teacher
    return {one.name: chosen(one.candidates, teacher) for one in status.students if one.candidates} if teacher else {}


def bytes_stored(job: JobConfig, teacher: Architecture, student: Architecture | None) -> tuple[int, int]:
    """Bytes of the job's artifact without copies of sources, and of its checkpoints, which go when it has ended."""
    training, parameters, beside = job.training, student.parameters if student else 0, 0
    if isinstance(training, DistillConfig) and student is not None:
        beside = loss_parameters(resolved_losses(training.losses, teacher, student), teacher, student)
    return (
        job.bytes_kept(teacher.parameters, parameters),
        job.bytes_of_checkpoints(teacher.parameters, parameters, beside),
    )


def room_for(run: CompressionRun, job: Job) -> int:
    """All that a job of the run writes, but for copies of its sources, as the run's sizes have it; 0 while the teacher
    isn't known.
    """
    teacher = run.status.teacher
    if teacher is None:
        return 0
    student = shapes_of(run.spec, teacher, searched_in(run.status)).get(job.student or "")
    return sum(bytes_stored(job.config, teacher, student))
