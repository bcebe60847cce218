"""What a run's report is about: its resource (run.yaml) and its artifacts in the store."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import ExportResult, Phase
from compression_pipeline.errors import UserError

from .data import Exported, RunData, StepData, StudentData
from .reading import Reader, weights


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
    found = _Artifacts(Store(store))
    steps = [_step(entry) for entry in status.get("steps") or []]
    figures = {entry["name"]: entry for entry in status.get("students") or []}
    teacher = found.reader.teacher(
        found.of(steps, Phase.PREPARE),
        found.of(steps, Phase.FINETUNE),
        parameters=(status.get("teacher") or {}).get("parameterCount"),
        losses=[entry.get("validationLoss") or {} for entry in figures.values()],
    )
    students: list[StudentData] = []
    for name in [entry["name"] for entry in spec.get("students") or []] or list(figures):
        mine = [step for step in steps if step.student == name]
        prune, distill, export = (found.of(mine, phase) for phase in (Phase.PRUNE, Phase.DISTILL, Phase.EXPORT))
        exported = _exported(found.reader, export, spec)
        checkpoint = figures.get(name, {}).get("artifact") or (export.name if export else None)
        load = None
        if checkpoint and exported:  # a run on a cluster names its storage, and has no work directory
            load = f"artifacts/{checkpoint}/model" if spec.get("storage") else f"students/{name}"
        students.append(
            found.reader.student(
                name,
                prune,
                distill,
                exported,
                teacher=teacher,
                steps=mine,
                load=load,
                figures=figures.get(name),
            )
        )
    teacher, shown = found.reader.comparable(teacher, students)
    metadata = resource.get("metadata") or {}
    name = str(metadata.get("name", run.stem))
    return RunData(
        name=name,
        title=name,
        phase=str(status.get("phase", "Pending")),
        generation=metadata.get("generation"),
        start=_time(status.get("startTime")),
        end=_time(status.get("completionTime")),
        message=_message(status),
        spec=spec,
        teacher=teacher,
        students=shown,
        steps=steps,
        versions=found.reader.versions,
        gaps=found.reader.gaps,
        place="the store" if spec.get("storage") else "the work directory",
    )


class _Artifacts:
    """Finds the artifacts of steps."""

    def __init__(self, store: Store) -> None:
        self.reader = Reader()
        self._store = store

    def of(self, steps: Sequence[StepData], phase: Phase) -> Artifact | None:
        step = next((step for step in steps if step.phase == phase.value), None)
        if step is None or step.artifact is None or step.state != "Succeeded":
            return None
        found = self._store.find(step.artifact)
        if found is None:
            said = f"{step.artifact} is not whole in the store, so what {step.name} measured is left out."
            self.reader.gaps.append(said)
            return None
        self.reader.saw(found.manifest.versions)
        note = self._store.published(step.fingerprint) if step.fingerprint else None
        if note is None or note.artifact != found.name:
            return found
        return self._store.recorded(note) or found  # with the figures that this very step told of it


def _exported(reader: Reader, export: Artifact | None, spec: Mapping[str, Any]) -> Exported | None:
    result = reader.result(export, ExportResult)
    if result is None:
        return None
    return Exported(
        relative_error=result.relative_error,
        loss=result.distilled_loss,
        dtype=(spec.get("export") or {}).get("dtype", "bfloat16"),
        weights=weights(export) or result.bytes,
        sample=result.sample,
        teacher_sample=result.teacher_sample,
    )


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


def _time(value: object) -> datetime | None:
    """A status's time: YAML may have read it already."""
    if isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(str(value)) if value else None
    except ValueError:
        return None
