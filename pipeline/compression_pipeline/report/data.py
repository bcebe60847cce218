"""What a report is about, as plain typed values. Everything that may be missing in an unfinished run is None or empty.

A run's report is made from its resource and the store (run.py), a student's own from the artifacts that led to it
(student.py). Both are the same values, and so the same page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from compression_pipeline.config import Architecture, Phase, PrepareResult, StepResult, Verdict, won_back

from .importance import Importance
from .resource import Losses, Step

Curve = Sequence[tuple[float, float]]

Results = Mapping[Phase, StepResult]
"""What phases reported, as far as they have run."""


@dataclass(frozen=True)
class History:
    """A training phase over its steps."""

    loss: Curve = ()
    validation: Curve = ()
    scores: Mapping[str, Curve] = field(default_factory=dict[str, Curve])
    """By task."""

    @property
    def unvalidated(self) -> "History":
        """Without its validation losses."""
        return replace(self, validation=())


@dataclass(frozen=True)
class Exported:
    """A student's checkpoint: how far its logits are from the trained student's, and what it writes."""

    relative_error: float
    loss: float | None  # validation loss of the exported weights
    dtype: str
    weights: int  # bytes
    sample: str
    teacher_sample: str | None


@dataclass(frozen=True)
class Measured:
    """Validation losses of a chain of models, in nats per token, as far as one phase or one status tells them."""

    teacher: float | None = None
    """Of the teacher as it came."""
    corrected_teacher: float | None = None
    taught_by: float | None = None
    """Of the teacher that the student learns from."""
    pruned: float | None = None
    distilled: float | None = None
    rounded: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the student's weights, by the type that they are rounded to."""

    @classmethod
    def of_status(cls, told: Losses) -> "Measured":
        """What the status of a run has of a student."""
        taught_by = told.teacher if told.corrected_teacher is None else told.corrected_teacher
        return cls(told.teacher, told.corrected_teacher, taught_by, told.pruned, told.distilled)

    def over(self, other: "Measured") -> "Measured":
        """These losses, and what only the other one tells."""
        told = {name: value for name, value in vars(self).items() if value not in (None, {})}
        return replace(other, **told)


@dataclass(frozen=True)
class StudentData:
    """One student: its figures, and what its artifacts hold."""

    name: str
    parameters: int | None
    ratio: float | None
    teacher_loss: float | None
    pruned_loss: float | None
    distilled_loss: float | None  # of the exported weights, where there are such
    tokens_per_second: float | None
    architecture: Architecture | None
    kept_layers: Sequence[int]
    importance: Importance | None
    calibration_samples: int | None
    history: History
    export: Exported | None
    load: str | None  # folder to load it from, within RunData.place
    sample: str | None
    steps: Sequence[Step]
    precision: str | None = None  # the arithmetic of its distillation
    sequences: int | None = None  # that its losses are means over
    results: Results = field(default_factory=dict)
    gate: Sequence[Verdict] = ()  # what accept says of it

    @property
    def recovered(self) -> float | None:
        """Share of the validation loss that pruning cost which distillation won back (1 is all of it)."""
        return won_back(self.teacher_loss, self.pruned_loss, self.distilled_loss)


@dataclass(frozen=True)
class TeacherData:
    """The teacher, before and after its correction."""

    architecture: Architecture | None
    parameters: int | None
    loss: float | None
    corrected_loss: float | None
    history: History
    tokens_per_second: float | None
    checkpoint_bytes: int | None
    prepared: PrepareResult | None
    precision: str | None = None  # the arithmetic of its correction
    sequences: int | None = None  # that its losses are means over


@dataclass(frozen=True)
class RunData:
    """A run, as far as it has come; or what led to one student, which is a run of it alone."""

    name: str
    title: str
    phase: str
    start: datetime | None
    end: datetime | None
    message: str
    spec: Mapping[str, Any]
    teacher: TeacherData
    students: Sequence[StudentData]
    steps: Sequence[Step]
    versions: Mapping[str, str]
    gaps: Sequence[str]
    place: str  # where the students lie, in words
    manifest_note: str = ""  # what to know of the manifest before it is run again
    results: Results = field(default_factory=dict)  # of the phases that all students share
