"""What the report is about: a run's resource (run.yaml) and its artifacts, read into plain typed values.

Everything that may be missing in an unfinished run is None or empty. Nothing here raises over a damaged or missing
artifact: what it would have told is left out, and `RunData.gaps` says so.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import (
    Architecture,
    DistillResult,
    ExportResult,
    FinetuneResult,
    Phase,
    PrepareResult,
    PruneResult,
    won_back,
)
from compression_pipeline.errors import UserError

from .importance import Importance, read_importance

Model = TypeVar("Model", bound=BaseModel)
Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class History:
    """A training phase over its steps."""

    loss: Curve = ()
    validation: Curve = ()


@dataclass(frozen=True)
class StepData:
    """One step as the status has it."""

    name: str
    phase: str
    student: str | None
    state: str
    attempt: int
    failures: int
    cached: bool
    artifact: str | None
    fingerprint: str | None
    message: str
    start: datetime | None
    end: datetime | None
    progress: Mapping[str, Any]

    @property
    def seconds(self) -> float | None:
        """Running time, where it has ended."""
        return (self.end - self.start).total_seconds() if self.start and self.end else None


@dataclass(frozen=True)
class StudentData:
    """One student: its figures, and what its artifacts hold."""

    name: str
    parameters: int | None
    ratio: float | None
    teacher_loss: float | None
    pruned_loss: float | None
    distilled_loss: float | None
    tokens_per_second: float | None
    architecture: Architecture | None
    kept_layers: Sequence[int]
    importance: Importance | None
    history: History
    export: ExportResult | None
    export_dtype: str | None
    checkpoint: str | None
    checkpoint_bytes: int | None
    sample: str | None
    steps: Sequence[StepData]

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


@dataclass(frozen=True)
class RunData:
    """A run, as far as it has come."""

    name: str
    phase: str
    generation: int | None
    start: datetime | None
    end: datetime | None
    message: str
    spec: Mapping[str, Any]
    teacher: TeacherData
    students: Sequence[StudentData]
    steps: Sequence[StepData]
    versions: Mapping[str, str]
    gaps: Sequence[str]


@dataclass
class _Reader:
    store: Store
    gaps: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def artifact(self, step: StepData | None) -> Artifact | None:
        if step is None or step.artifact is None or step.state != "Succeeded":
            return None
        found = self.store.find(step.artifact)
        if found is None:
            self.gaps.append(f"{step.artifact} is not whole in the store, so what {step.name} measured is left out.")
            return None
        self.versions |= found.manifest.versions
        return found

    def result(self, artifact: Artifact | None, model: type[Model]) -> Model | None:
        if artifact is None:
            return None
        try:
            return model.model_validate(artifact.manifest.result)
        except ValidationError:
            self.gaps.append(f"{artifact.name} was made by another version; its result can't be read.")
            return None

    def importance(self, prune: Artifact | None) -> Importance | None:
        if prune is None:
            return None
        try:
            return read_importance(prune.path)
        except (OSError, ValueError, LookupError, TypeError):
            self.gaps.append(f"{prune.name} has no importance scores that can be read, so they are left out.")
            return None


def load_run(run: Path, store: Path) -> RunData:
    """Read the resource in the file `run` and its artifacts in the folder `store`.

    Raises UserError where the file can't be read or is no CompressionRun.
    """
    try:
        resource = yaml.safe_load(run.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())  # YAML's errors have several lines
        raise UserError(f"{run}: can't be read ({why}); give the run.yaml of a work directory") from error
    if not isinstance(resource, dict) or resource.get("kind") != "CompressionRun":
        raise UserError(f"{run}: is not a CompressionRun; give the run.yaml of a work directory")
    status: Mapping[str, Any] = resource.get("status") or {}
    spec: Mapping[str, Any] = resource.get("spec") or {}
    reader = _Reader(Store(store))
    steps = [_step(entry) for entry in status.get("steps") or []]
    figures = {entry["name"]: entry for entry in status.get("students") or []}
    named = [entry["name"] for entry in spec.get("students") or []] or list(figures)
    teacher = _teacher(reader, steps, status)
    students = [_student(reader, name, figures.get(name, {}), teacher, steps, spec) for name in named]
    metadata = resource.get("metadata") or {}
    return RunData(
        name=str(metadata.get("name", run.stem)),
        phase=str(status.get("phase", "Pending")),
        generation=metadata.get("generation"),
        start=_time(status.get("startTime")),
        end=_time(status.get("completionTime")),
        message=_message(status),
        spec=spec,
        teacher=teacher,
        students=students,
        steps=steps,
        versions=reader.versions,
        gaps=reader.gaps,
    )


def _teacher(reader: _Reader, steps: Sequence[StepData], status: Mapping[str, Any]) -> TeacherData:
    prepare = reader.artifact(_find(steps, Phase.PREPARE))
    finetune = reader.artifact(_find(steps, Phase.FINETUNE))
    prepared = reader.result(prepare, PrepareResult)
    corrected = reader.result(finetune, FinetuneResult)
    losses = [entry.get("validationLoss") or {} for entry in status.get("students") or []]
    parameters = (status.get("teacher") or {}).get("parameterCount")
    return TeacherData(
        architecture=prepared.teacher if prepared else None,
        parameters=parameters or (prepared.teacher_parameters if prepared else None),
        loss=corrected.teacher_loss if corrected else _first(losses, "teacher"),
        corrected_loss=corrected.corrected_teacher_loss if corrected else _first(losses, "correctedTeacher"),
        history=_history(finetune),
        tokens_per_second=corrected.tokens_per_second if corrected else None,
        checkpoint_bytes=_weights(prepare),
        prepared=prepared,
    )


def _student(
    reader: _Reader,
    name: str,
    figures: Mapping[str, Any],
    teacher: TeacherData,
    steps: Sequence[StepData],
    spec: Mapping[str, Any],
) -> StudentData:
    mine = [step for step in steps if step.student == name]
    prune = reader.artifact(_find(mine, Phase.PRUNE))
    distill = reader.artifact(_find(mine, Phase.DISTILL))
    exporting = _find(mine, Phase.EXPORT)
    export = reader.artifact(exporting)
    pruned = reader.result(prune, PruneResult)
    distilled = reader.result(distill, DistillResult)
    exported = reader.result(export, ExportResult)
    loss = figures.get("validationLoss") or {}
    taught_by = loss.get("correctedTeacher", loss.get("teacher"))
    if taught_by is None:
        taught_by = teacher.corrected_loss if teacher.corrected_loss is not None else teacher.loss
    return StudentData(
        name=name,
        parameters=figures.get("parameters") or (pruned.parameters if pruned else None),
        ratio=figures.get("compressionRatio") or (pruned.compression_ratio if pruned else None),
        teacher_loss=distilled.teacher_loss if distilled else taught_by,
        pruned_loss=distilled.pruned_loss if distilled else loss.get("pruned"),
        distilled_loss=distilled.distilled_loss if distilled else loss.get("distilled"),
        tokens_per_second=figures.get("tokensPerSecond") or (distilled.tokens_per_second if distilled else None),
        architecture=pruned.student if pruned else None,
        kept_layers=pruned.kept_layers if pruned else [],
        importance=reader.importance(prune),
        history=_history(distill),
        export=exported,
        export_dtype=(spec.get("export") or {}).get("dtype", "bfloat16"),
        checkpoint=figures.get("artifact") or (exporting.artifact if exporting else None),
        checkpoint_bytes=_weights(export) or (exported.bytes if exported else None),
        sample=figures.get("sample") or (exported.sample if exported else None),
        steps=mine,
    )


def _history(artifact: Artifact | None) -> History:
    """A training phase's history.json."""
    content = _json(artifact.path / "history.json") if artifact else None
    if not isinstance(content, dict):
        return History()
    return History(loss=_curve(content.get("train")), validation=_curve(content.get("validation")))


def _curve(entries: object) -> Curve:
    points: list[tuple[float, float]] = []
    for entry in entries if isinstance(entries, list) else []:
        step, loss = entry.get("step"), entry.get("loss")
        if isinstance(step, int) and isinstance(loss, int | float) and math.isfinite(loss):
            points.append((float(step), float(loss)))
    return points


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _weights(artifact: Artifact | None) -> int | None:
    """Bytes of an artifact's safetensors."""
    if artifact is None:
        return None
    files = artifact.manifest.files
    return sum(record.size for name, record in files.items() if name.endswith(".safetensors")) or None


def _step(entry: Mapping[str, Any]) -> StepData:
    failure = entry.get("lastFailure") or {}
    return StepData(
        name=str(entry.get("name", "")),
        phase=str(entry.get("phase", "")),
        student=entry.get("student"),
        state=str(entry.get("state", "Pending")),
        attempt=int(entry.get("attempt") or 0),
        failures=int(entry.get("failures") or 0),
        cached=bool(entry.get("cached")),
        artifact=entry.get("artifact"),
        fingerprint=entry.get("fingerprint"),
        message=str(entry.get("message") or failure.get("message") or ""),
        start=_time(entry.get("startTime")),
        end=_time(entry.get("completionTime")),
        progress=entry.get("progress") or {},
    )


def _message(status: Mapping[str, Any]) -> str:
    """What the condition Ready says."""
    ready = (c for c in status.get("conditions") or [] if c.get("type") == "Ready")
    return str(next(ready, {}).get("message", ""))


def _find(steps: Sequence[StepData], phase: Phase) -> StepData | None:
    return next((step for step in steps if step.phase == phase.value), None)


def _first(losses: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((loss[name] for loss in losses if loss.get(name) is not None), None)


def _time(value: object) -> datetime | None:
    """A status's time: YAML may have read it already."""
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(str(value)) if value else None
    except ValueError:
        return None
