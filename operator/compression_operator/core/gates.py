"""The gate: what `accept` says of the students that are exported. Pure."""

from collections.abc import Sequence

from compression_operator.api.spec import CompressionRunSpec
from compression_operator.api.status import CompressionRunStatus, StudentStatus
from compression_pipeline.config import GateFigures, verdicts


def judged(spec: CompressionRunSpec, status: CompressionRunStatus) -> CompressionRunStatus:
    """The status with the verdicts on every student that has a gate: open until it is exported (and scored, for
    tasks), because the gate is on what the run hands out.
    """
    gates = {student.name: student.accept or spec.accept for student in spec.students}
    shown = [
        student.model_copy(update={"gate": verdicts(gates.get(student.name), _figures(student)) or None})
        for student in status.students
    ]
    return status.model_copy(update={"students": shown})


def missed(students: Sequence[StudentStatus]) -> list[str]:
    """What each student misses, in a sentence that names it and where its checkpoint is."""
    found: list[str] = []
    for student in students:
        if said := [str(verdict) for verdict in student.gate or () if verdict.met is False]:
            found.append(f"{student.name} misses accept: {' and '.join(said)}; its checkpoint is {student.artifact}")
    return found


def is_open(students: Sequence[StudentStatus]) -> bool | None:
    """Whether a verdict is still to come; None where there is no gate."""
    found = [verdict.met is None for student in students for verdict in student.gate or ()]
    return any(found) if found else None


def _figures(student: StudentStatus) -> GateFigures:
    loss = student.validation_loss
    if student.artifact is None:
        return GateFigures(None, None)
    taught_by = loss.teacher if loss.corrected_teacher is None else loss.corrected_teacher
    return GateFigures(loss.final, taught_by, student.evaluation.tasks if student.evaluation else ())
