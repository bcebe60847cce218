"""What a report reads of a CompressionRun, which the operator writes (its `api/status.py`; a test compares).

All of it may be missing, as in a run that has just begun, and the operator may be of another version: words stay words.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from compression_pipeline.config import Record, Verdict
from compression_pipeline.errors import UserError


class Progress(Record):
    """Where a step stands."""

    step: int | None = None
    total_steps: int | None = None
    exported_step: int | None = None


class Failure(Record):
    """The newest attempt that did not succeed."""

    message: str = ""


class Step(Record):
    """One step of the run's plan."""

    name: str = ""
    phase: str = ""
    student: str | None = None
    state: str = "Pending"
    attempt: int = 0
    failures: int = 0
    cached: bool = False
    artifact: str | None = None
    fingerprint: str | None = None
    message: str = ""
    start_time: datetime | None = None
    completion_time: datetime | None = None
    progress: Progress = Progress()
    last_failure: Failure = Failure()

    @property
    def reason(self) -> str:
        """What it waits for, or why it or its newest attempt failed."""
        return self.message or self.last_failure.message

    @property
    def seconds(self) -> float | None:
        """Running time, where it has ended."""
        start, end = self.start_time, self.completion_time
        return (end - start).total_seconds() if start and end else None


class Losses(Record):
    """Validation losses, in nats per token."""

    teacher: float | None = None
    corrected_teacher: float | None = None
    pruned: float | None = None
    distilled: float | None = None
    exported: float | None = None


class Student(Record):
    """The figures of one student, as the status has them."""

    name: str
    parameters: int | None = None
    compression_ratio: float | None = None
    validation_loss: Losses = Losses()
    tokens_per_second: float | None = None
    artifact: str | None = None
    sample: str | None = None
    gate: Sequence[Verdict] = ()


class Condition(Record):
    """A condition of the run."""

    type: str
    message: str = ""


class Teacher(Record):
    """What prepare found of the teacher."""

    parameter_count: int | None = None


class Status(Record):
    """How far the run has come."""

    phase: str = "Pending"
    start_time: datetime | None = None
    completion_time: datetime | None = None
    conditions: Sequence[Condition] = ()
    teacher: Teacher = Teacher()
    steps: Sequence[Step] = ()
    students: Sequence[Student] = ()

    @property
    def message(self) -> str:
        """What the condition Ready says."""
        return next((condition.message for condition in self.conditions if condition.type == "Ready"), "")


class Metadata(Record):
    """The run's name, which a manifest may leave out."""

    name: str = "run"
    namespace: str | None = None


class Resource(Record):
    """A CompressionRun."""

    api_version: str = ""
    kind: str = Field(pattern="^CompressionRun$")
    metadata: Metadata = Metadata()
    spec: Mapping[str, Any] = {}
    status: Status = Status()

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest to run again: without what a system wrote into it."""
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "metadata": self.metadata.to_json(),
            "spec": dict(self.spec),
        }


def read_resource(run: Path) -> Resource:
    """The resource in the file `run`, as far as reports read it.

    Raises UserError where the file can't be read or is no CompressionRun.
    """
    advice = "give the run.yaml of a work directory"
    try:
        content = yaml.safe_load(run.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())  # YAML's errors have several lines
        raise UserError(f"{run}: can't be read ({why}); {advice}") from error
    try:
        return Resource.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if where.partition(".")[0] not in ("status", "spec", "metadata"):
            raise UserError(f"{run}: is not a CompressionRun; {advice}") from error
        raise UserError(f"{run}: {where} can't be read ({first['msg']}); {advice}") from error
