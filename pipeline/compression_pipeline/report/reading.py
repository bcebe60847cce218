"""Artifacts read for a report. Nothing here raises over what can't be read: it is left out, and `gaps` says so."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import (
    PHASES,
    ExportResult,
    Phase,
    Precision,
    PrepareResult,
    PruneResult,
    StepResult,
    TrainingResult,
)

from .ancestry import measured_over
from .data import Curve, Exported, History, Measured, Results, StudentData, TeacherData
from .importance import Importance, read_importance
from .phases import measured
from .resource import Step, Student

Model = TypeVar("Model", bound=StepResult)


@dataclass(frozen=True)
class Chain:
    """Artifacts by the phase that made them, and what it reported as far as that can be read."""

    artifacts: Mapping[Phase, Artifact]
    results: Results

    @property
    def losses(self) -> Measured:
        """The validation losses that its results tell."""
        return measured(self.results)

    @property
    def training(self) -> Artifact | None:
        """Of the last phase that trained the model."""
        trained = [self.artifacts[phase] for phase in Phase if phase in self.artifacts and PHASES[phase].trains]
        return trained[-1] if trained else None

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of the last training that told one."""
        results = [self.results[phase] for phase in Phase if phase in self.results]
        speeds = [result.tokens_per_second for result in results if isinstance(result, TrainingResult)]
        return next((speed for speed in reversed(speeds) if speed is not None), None)

    def result(self, phase: Phase, model: type[Model]) -> Model | None:
        """What the phase reported, by its own model."""
        found = self.results.get(phase)
        return found if isinstance(found, model) else None


class Reader:
    """Reads artifacts, and remembers what could not be read and which versions made them."""

    def __init__(self) -> None:
        self.gaps: list[str] = []
        self._versions: dict[str, list[str]] = {}

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions by package; several where the phases ran with several."""
        return {name: ", ".join(found) for name, found in self._versions.items()}

    def saw(self, versions: Mapping[str, str]) -> None:
        """Remember the versions that something was made with."""
        for name, version in versions.items():
            found = self._versions.setdefault(name, [])
            if version not in found:
                found.append(version)

    def chain(self, artifacts: Mapping[Phase, Artifact]) -> Chain:
        """The artifacts with their results."""
        results: dict[Phase, StepResult] = {}
        for phase, artifact in artifacts.items():
            try:
                results[phase] = PHASES[phase].result.model_validate(artifact.manifest.result)
            except ValidationError:
                self.gaps.append(f"{artifact.name} was made by another version; its result can't be read.")
        return Chain(artifacts, results)

    def teacher(self, chain: Chain, *, parameters: int | None = None, losses: Sequence[Measured] = ()) -> TeacherData:
        """The teacher by the artifacts that all students share; `losses` are what is known without finetune's."""
        training, prepared = chain.training, chain.result(Phase.PREPARE, PrepareResult)
        loss = chain.losses
        for each in losses:
            loss = loss.over(each)
        return TeacherData(
            architecture=prepared.teacher if prepared else None,
            parameters=parameters or (prepared.teacher_parameters if prepared else None),
            loss=loss.teacher,
            corrected_loss=loss.corrected_teacher,
            history=self._history(training, prepared),
            tokens_per_second=chain.tokens_per_second,
            checkpoint_bytes=weights(chain.artifacts.get(Phase.PREPARE)),
            prepared=prepared,
            precision=_precision(training),
            sequences=measured_over(training, prepared) if training else None,
        )

    def student(
        self,
        chain: Chain,
        exported: Exported | None,
        *,
        teacher: TeacherData,
        steps: Sequence[Step],
        load: str | None,
        figures: Student,
    ) -> StudentData:
        """A student by its artifacts; `figures`: its entry in a status, which has what is known without them."""
        training, prune = chain.training, chain.artifacts.get(Phase.PRUNE)
        pruned = chain.result(Phase.PRUNE, PruneResult)
        told = figures.validation_loss
        loss = chain.losses.over(Measured.of_status(told))
        # Of the weights that are handed out; as distill measured them last, where export stands since before that.
        final = loss.rounded.get(exported.dtype, exported.loss) if exported else told.exported
        taught_by = loss.taught_by
        if taught_by is None:
            taught_by = teacher.corrected_loss if teacher.corrected_loss is not None else teacher.loss
        return StudentData(
            name=figures.name,
            parameters=figures.parameters or (pruned.parameters if pruned else None),
            ratio=figures.compression_ratio or (pruned.compression_ratio if pruned else None),
            teacher_loss=taught_by,
            pruned_loss=loss.pruned,
            distilled_loss=loss.distilled if final is None else final,
            tokens_per_second=figures.tokens_per_second or chain.tokens_per_second,
            architecture=pruned.student if pruned else None,
            kept_layers=pruned.kept_layers if pruned else [],
            importance=self._importance(prune),
            calibration_samples=prune.manifest.metrics.get("calibrationSamples") if prune else None,
            history=self._history(training, teacher.prepared),
            export=exported,
            load=load,
            sample=figures.sample or (exported.sample if exported else None),
            steps=steps,
            precision=_precision(training),
            sequences=measured_over(training, teacher.prepared) if training else None,
            results=chain.results,
            gate=figures.gate,
        )

    def comparable(
        self, teacher: TeacherData, students: Sequence[StudentData]
    ) -> tuple[TeacherData, Sequence[StudentData]]:
        """The models with just those losses that are means over as many sequences as the first student's; `gaps` says
        whose are left out.
        """
        wanted = next((student.sequences for student in students if student.sequences), None)

        def other(name: str, sequences: int | None) -> bool:
            if None in (wanted, sequences) or sequences == wanted:
                return False
            said = f"{name} was measured over {sequences:,} validation sequences and not over {wanted:,} as the others"
            self.gaps.append(f"{said}, so its losses are left out.")
            return True

        if other("The teacher", teacher.sequences):
            taught = next((student.teacher_loss for student in students if student.sequences == wanted), None)
            teacher = replace(teacher, loss=None, corrected_loss=taught, history=teacher.history.unvalidated)
        none = {"teacher_loss": None, "pruned_loss": None, "distilled_loss": None}
        return teacher, [
            replace(student, **none, history=student.history.unvalidated)
            if other(student.name, student.sequences)
            else student
            for student in students
        ]

    def _history(self, artifact: Artifact | None, prepared: PrepareResult | None) -> History:
        """A training phase's history.json; without its validation where the result's was made otherwise since."""
        history = _history(artifact)
        told = artifact.manifest.metrics.get("validationSequences") if artifact else None
        since = measured_over(artifact, prepared) if artifact else None
        if artifact is None or None in (told, since) or told == since:
            return history
        self.gaps.append(
            f"{artifact.name} was measured anew, over {since:,} validation sequences instead of {told:,}, so the "
            "losses while it was trained are left out."
        )
        return history.unvalidated

    def _importance(self, prune: Artifact | None) -> Importance | None:
        if prune is None:
            return None
        try:
            return read_importance(prune.path)
        except (OSError, ValueError, LookupError, TypeError):
            self.gaps.append(f"{prune.name} has no importance scores that can be read, so they are left out.")
            return None


def exported_of(result: ExportResult, artifact: Artifact | None, dtype: str) -> Exported:
    """What export reported of the checkpoint in its artifact, whose weights have this type."""
    return Exported(
        relative_error=result.relative_error,
        loss=result.distilled_loss,
        dtype=str(dtype),
        weights=weights(artifact) or result.bytes,
        sample=result.sample,
        teacher_sample=result.teacher_sample,
    )


def weights(artifact: Artifact | None) -> int | None:
    """Bytes of an artifact's safetensors."""
    if artifact is None:
        return None
    files = artifact.manifest.files
    return sum(record.size for name, record in files.items() if name.endswith(".safetensors")) or None


def _precision(artifact: Artifact | None) -> str | None:
    """The arithmetic that a training used, in words."""
    used = artifact.manifest.metrics.get("precision") if artifact else None
    return Precision(used).words if used in set(Precision) else None


def _history(artifact: Artifact | None) -> History:
    """A training phase's history.json."""
    content = _json(artifact.path / "history.json") if artifact else None
    if not isinstance(content, dict):
        return History()
    scores: dict[str, list[Any]] = {}
    for entry in content.get("scores") or []:
        scores.setdefault(str(entry.get("name")), []).append(entry)
    return History(
        loss=_curve(content.get("train")),
        validation=_curve(content.get("validation")),
        scores={name: _curve(entries, "score") for name, entries in scores.items()},
    )


def _curve(entries: object, figure: str = "loss") -> Curve:
    points: list[tuple[float, float]] = []
    for entry in entries if isinstance(entries, list) else []:
        step, value = entry.get("step"), entry.get(figure)
        if isinstance(step, int) and isinstance(value, int | float) and math.isfinite(value):
            points.append((float(step), float(value)))
    return points


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
