"""What an entry of `phase_steps.STEPS` says of the steps of a phase."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compression_operator.api.spec import CompressionRunSpec, Student
from compression_operator.api.status import CompressionRunStatus, Step, StudentStatus
from compression_pipeline.config import EvaluateConfig, Phase, Precision, Record

Configuration = Mapping[str, Any]
"""By field of the phase's job: what shapes the artifact. All of it enters fingerprints."""

Figures = Mapping[str, Callable[[Any, Step], Any]]
"""By field of StudentStatus: its value, from the phase's result and the step that has just succeeded."""

Asked = Mapping[str, EvaluateConfig]
"""By field of the phase's job: how tasks are asked."""

Discovered = Mapping[str, Record]
"""By step: what it has found that other steps are planned by, as the status keeps it."""


def _always(spec: CompressionRunSpec) -> bool:
    return True


def _every_student(spec: CompressionRunSpec, discovered: Discovered) -> Sequence[Student]:
    return spec.students


def _unchanged(status: CompressionRunStatus) -> CompressionRunStatus:
    return status


def _unread(status: CompressionRunStatus, result: Any) -> CompressionRunStatus:
    return status


def _nothing_derived(status: CompressionRunStatus, student: StudentStatus) -> StudentStatus:
    return student


@dataclass(frozen=True)
class Discovery:
    """What a step finds that other steps are planned by; `record` keeps it in the status."""

    read: Callable[[CompressionRunStatus], Record | None]
    """What the status keeps of it; None until it is found."""
    forget: Callable[[CompressionRunStatus], CompressionRunStatus]
    """The status without it."""
    key: Callable[[Any], str | None] = lambda found: None
    """Key of the step's artifact, if its job names it by what it finds."""
    parts: Callable[[Any], Mapping[str, str]] = lambda found: {}
    """Keys of parts of it by their names, for what reads some of them alone. Empty where they were not told."""


@dataclass(frozen=True)
class PhaseSteps:
    """The steps of one phase."""

    phase: Phase
    inputs: Callable[[CompressionRunSpec], Mapping[str, Phase]]
    """By role (a field of the phase's job): the phase whose artifact fills it, of the same student if it has one."""
    configuration: Callable[[CompressionRunSpec, Student | None, Precision], Configuration]
    """`Precision` is the arithmetic of what computes on the phase's device and isn't told any."""
    of_student: Callable[[CompressionRunSpec, Student | None], Mapping[str, Phase]] = lambda spec, student: {}
    """What it reads besides `inputs`, for a student that needs it."""
    spares: frozenset[str] = frozenset()
    """Roles that it goes without, under a key of its own, where the steps that fill them have failed."""
    wanted: Callable[[CompressionRunSpec], bool] = _always
    """Whether the run has such steps."""
    students: Callable[[CompressionRunSpec, Discovered], Sequence[Student]] = _every_student
    """For whom, if the phase has a step for each student. What an earlier step has found may add some."""
    files: str = ""
    """The annotation with the digest of the local files that it reads, if it reads sources."""
    discovery: Discovery | None = None
    """What its step finds that other steps are planned by. A phase of one step only."""
    measures_choose: Callable[[Configuration], bool] = lambda configuration: False
    """Whether what it measures decides what it makes, so that how it measures is a part of the key."""
    watches: Callable[[Configuration], frozenset[str]] = lambda configuration: frozenset()
    """Fields and roles of its job that are for those who watch it, and shape nothing: no part of any key."""
    asks: Callable[[Configuration], Asked] = lambda configuration: {}
    """Tasks whose scores decide what it makes. The key has these, in place of what the job is told in these fields, and
    of the artifact with the tasks their parts alone.
    """
    depends_on_device: bool = False
    """Whether the device's arithmetic shapes the artifact although no setting says which."""
    arithmetic: Callable[[Configuration, Precision], str] = lambda configuration, precision: precision
    """That arithmetic, as the key has it."""
    finds_shape: bool = False
    """Whether it finds the shape of a student that has a target."""
    student_figures: Figures = field(default_factory=dict[str, Callable[[Any, Step], Any]])
    """What of its result goes into status.students[]; back to the default while the step isn't done."""
    record: Callable[[CompressionRunStatus, Any], CompressionRunStatus] = _unread
    """The status with what the result says of the whole run."""
    forget: Callable[[CompressionRunStatus], CompressionRunStatus] = _unchanged
    """The status without that, because the step isn't done (any more)."""
    derive: Callable[[CompressionRunStatus, StudentStatus], StudentStatus] = _nothing_derived
    """A student's figures with those that follow from other steps' figures, if the run has such steps."""
