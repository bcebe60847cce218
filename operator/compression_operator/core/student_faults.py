"""Why students cannot be made of their teacher. Pure."""

from collections.abc import Iterator, Mapping

from compression_operator.api.spec import CompressionRunSpec, Student
from compression_pipeline.config import (
    Architecture,
    Parallelism,
    loss_faults,
    split_faults,
    student_architecture,
    student_faults,
)


def faults_by_student(
    spec: CompressionRunSpec,
    teacher: Architecture,
    searched: Mapping[str, Architecture] | None = None,
    *,
    gpus: int | None = None,
) -> Mapping[str, list[tuple[str, str]]]:
    """By name of each student that cannot be made: the fields that are at fault, each with a sentence.

    Args:
        searched: shapes that were found for targets. What depends on the shape is not said of others that are searched.
        gpus: those of the one machine that runs all, which splits a model over what it has; None: a cluster.
    """
    splits = {phase: spec.phases.of(phase).split_on(gpus) for phase in ("finetune", "distill")}
    found = {
        student.name: list(_faults(spec, index, student, teacher, (searched or {}).get(student.name), splits))
        for index, student in enumerate(spec.students)
    }
    return {name: faults for name, faults in found.items() if faults}


def _faults(
    spec: CompressionRunSpec,
    index: int,
    student: Student,
    teacher: Architecture,
    found: Architecture | None,
    splits: Mapping[str, Parallelism],
) -> Iterator[tuple[str, str]]:
    where = f"spec.students[{index}]"
    if shape := list(student_faults(teacher, student.prune)):
        yield from ((f"{where}.prune.{field}", sentence) for field, sentence in shape)
        return
    distill, whose = (student.distill, f"{where}.distill") if student.distill else (spec.distill, "spec.distill")
    if spec.finetune is not None:
        yield from _layout_faults(splits, "finetune", teacher, "the teacher's")
    yield from _layout_faults(splits, "distill", teacher, "the teacher's")
    if distill is not None:
        for field, sentence in split_faults(distill, splits["distill"]):
            yield f"spec.phases.distill.parallelism.{field}", sentence
    if student.prune.searches and found is None:
        return
    losses, likeliest = (distill.losses, distill.likeliest) if distill is not None else ([], None)
    cut = found or student_architecture(teacher, student.prune)
    for field, sentence in loss_faults(losses, teacher, cut, engine=spec.engine, likeliest=likeliest):
        yield f"{whose}.{field}", sentence
    yield from _layout_faults(splits, "distill", cut, "the student's")


def _layout_faults(
    splits: Mapping[str, Parallelism], phase: str, model: Architecture, whose: str
) -> Iterator[tuple[str, str]]:
    """What of a phase's `parallelism` does not fit a model that it holds."""
    for field, sentence in splits[phase].faults(model, whose):
        yield f"spec.phases.{phase}.parallelism.{field}", sentence
