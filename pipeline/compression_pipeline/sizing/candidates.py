"""What is known of a searched shape before anything is measured, and what measuring it will cost."""

from collections.abc import Sequence

from compression_pipeline.config import (
    CACHED_TOKENS,
    METHODS,
    Architecture,
    Candidate,
    DistillConfig,
    PruneConfig,
    Shape,
    ValidationConfig,
    served_bytes,
)

from .flops import forward_flops, training_flops
from .sweep import blocks_of, forward_passes, swept_for


def candidate(student: Architecture, prune: PruneConfig, sequence_length: int) -> Candidate:
    """A shape that meets `prune.target`, with its figures. `sequence_length`: of the dataset."""
    cached = prune.target.cached_tokens if prune.target is not None else None
    return Candidate(
        **Shape.of(student)._asdict(),
        parameters=student.parameters,
        flops=forward_flops(student, sequence_length),
        memory=served_bytes(student, cached or CACHED_TOKENS),
    )


def search_flops(
    teacher: Architecture,
    students: list[Architecture],
    prune: PruneConfig,
    *,
    sequence_length: int,
    validation: ValidationConfig,
    distill: DistillConfig | None,
) -> float:
    """Operations of a search: importance once, or a sweep over blocks of layers for each number of layers that needs
    its own; the loss of the teacher and of every candidate; and the short distillation (`distill`) of each with another
    validation before and after it. Questions of a task, whose length is not known, are not counted.
    """
    validated = validation.samples * sequence_length
    whole = forward_flops(teacher, sequence_length)
    once = sum(forward_flops(student, sequence_length) for student in students)
    found = validated * (whole + once * (3 if distill else 1))
    found += importance_flops(teacher, students, prune, sequence_length=sequence_length)
    if distill is not None:
        trained = distill.steps * distill.global_batch_size * sequence_length
        found += trained * sum(training_flops(student, sequence_length, teacher) for student in students)
    return found


def importance_flops(
    teacher: Architecture, students: Sequence[Architecture], prune: PruneConfig, *, sequence_length: int
) -> float:
    """Operations of measuring importance for these students, as `search_flops` has them."""
    whole = forward_flops(teacher, sequence_length)
    found = prune.calibration_samples * sequence_length * whole
    if METHODS[prune.importance.depth].held_out:
        swept = prune.importance.held_out_sequences * sequence_length
        lengths = {swept_for(teacher.layers - student.layers) for student in students}
        found += swept * whole * sum(forward_passes(teacher.layers, blocks_of(teacher.layers, n)) for n in lengths)
    return found
