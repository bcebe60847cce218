"""A run as a work directory has it, without the hours it takes: run.yaml with its status, and its artifacts in a store.

Small, but whole: artifacts are published through the real store, with results by the phases' own models.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    Architecture,
    DistillResult,
    ExportResult,
    Family,
    FinetuneResult,
    LogitsResult,
    Phase,
    PrepareResult,
    PruneResult,
    ResolvedSource,
    TeacherMeasured,
    digest,
)
from compression_pipeline.config.base import ConfigModel

TEACHER = Architecture(
    family=Family.LLAMA,
    layers=8,
    hidden_size=128,
    ffn_hidden_size=384,
    attention_heads=8,
    query_groups=4,
    head_dim=16,
    vocabulary_size=2048,
    tied_embeddings=True,
)
TEACHER_LOSS, CORRECTED_LOSS = 4.612, 4.103
DISTILL_STEPS = 120


@dataclass
class Student:
    """One student of the fixture; `until` is the last phase that succeeded."""

    name: str
    architecture: Architecture
    kept_layers: Sequence[int]
    pruned: float
    distilled: float
    until: Phase = Phase.EXPORT
    failure: str = ""
    sample: str = "The function returns the name of the current file, or None if it is not found."
    scores: Sequence[float] = ()
    """In the task `calls`, over its distillation."""
    teacher_sample: str | None = "The function returns the name of the file that is read <now>."
    kept: float | None = None
    """Share of the teacher's probability in the logits that it learnt from; None where the teacher ran beside it."""


WIDTH = Student(
    "width",
    TEACHER.model_copy(update={"hidden_size": 96, "ffn_hidden_size": 256}),
    range(1, 9),
    pruned=4.934,
    distilled=4.171,
)
DEPTH = Student(
    "depth", TEACHER.model_copy(update={"layers": 5}), [1, 2, 3, 7, 8], pruned=6.482, distilled=4.296, sample="It is"
)


@dataclass
class Run:
    """Builds the files; `steps` and `students` of the status may be changed before `write`."""

    folder: Path
    students: Sequence[Student] = (WIDTH, DEPTH)
    name: str = "demo"
    phase: str = "Succeeded"
    steps: list[dict[str, Any]] = field(default_factory=list)
    seconds: int = 0

    @property
    def run_yaml(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def write(self) -> "Run":
        """Publish every artifact and write run.yaml."""
        source = ResolvedSource(source="file:demo/teacher", digest=digest("teacher"))
        prepared = PrepareResult(
            key=digest("content"),
            teacher=TEACHER,
            teacher_parameters=TEACHER.parameters,
            resolved_teacher=source,
            resolved_dataset=ResolvedSource(source="file:../text", digest=digest("text")),
            documents=458,
            train_tokens=253_954,
            validation_tokens=37_454,
        )
        weights = {"model/model.safetensors": b"\0" * (TEACHER.parameters * 2)}
        self._succeed(Phase.PREPARE, None, prepared, weights, took=4, key=prepared.key)
        corrected = FinetuneResult(
            teacher_loss=TEACHER_LOSS, corrected_teacher_loss=CORRECTED_LOSS, tokens_per_second=6120.5
        )
        files = {"history.json": history(TEACHER_LOSS, CORRECTED_LOSS, 60)}
        self._succeed(Phase.FINETUNE, None, corrected, files, took=38)
        for student in self.students:
            self._student(student)
        self.run_yaml.write_text(yaml.safe_dump(self.resource(), sort_keys=False, allow_unicode=True))
        return self

    def _student(self, student: Student) -> None:
        parameters = student.architecture.parameters
        pruned = PruneResult(
            student=student.architecture,
            parameters=parameters,
            compression_ratio=parameters / TEACHER.parameters,
            kept_layers=list(student.kept_layers),
        )
        distilled = DistillResult(
            teacher_loss=CORRECTED_LOSS,
            pruned_loss=student.pruned,
            distilled_loss=student.distilled,
            tokens_per_second=4410.0,
            losses="forward KL divergence",
            read_in_place=None if student.kept is None else "the teacher's 64 likeliest tokens",
        )
        exported = ExportResult(
            parameters=parameters,
            relative_error=8.4e-6,
            bytes=parameters * 4,
            sample=student.sample,
            teacher_sample=student.teacher_sample,
        )
        weights = {"model/model.safetensors": b"\0" * (parameters * 4)}
        curve = {"history.json": history(student.pruned, student.distilled, DISTILL_STEPS, student.scores)}
        made: list[tuple[Phase, ConfigModel, Mapping[str, bytes], int]] = [
            (Phase.PRUNE, pruned, importance(student), 9),
            *([(Phase.LOGITS, logits_of(student.kept), {}, 7)] if student.kept is not None else []),
            (Phase.DISTILL, distilled, curve, 71),
            (Phase.EXPORT, exported, weights, 11),
        ]
        phases = [phase for phase, *_ in made]
        for number, (phase, result, files, took) in enumerate(made):
            if number <= phases.index(student.until):
                self._succeed(phase, student.name, result, files, took)
            elif number == phases.index(student.until) + 1 and student.failure:
                self._step(phase, student.name, state="Failed", message=student.failure, attempt=1)
            else:
                self._step(phase, student.name, state="Skipped" if student.failure else "Pending")

    def _succeed(
        self,
        phase: Phase,
        student: str | None,
        result: ConfigModel,
        files: Mapping[str, bytes],
        took: int,
        key: str | None = None,
    ) -> None:
        fingerprint = digest([phase, student])
        with Store(self.store).draft(phase.value, key or fingerprint) as draft:
            for name, content in files.items():
                path = draft.path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            artifact = draft.publish(config={}, inputs={}, result=result.to_json())
        start, self.seconds = self.seconds, self.seconds + took
        self._step(
            phase,
            student,
            state="Succeeded",
            attempt=1,
            fingerprint=fingerprint,
            artifact=artifact.name,
            startTime=clock(start),
            completionTime=clock(self.seconds),
        )

    def _step(self, phase: Phase, student: str | None, **status: Any) -> None:
        name = f"{phase.value}-{student}" if student else phase.value
        self.steps.append({"name": name, "phase": phase.value, **({"student": student} if student else {}), **status})

    def resource(self) -> dict[str, Any]:
        """run.yaml's content."""
        finished = self.phase in ("Succeeded", "Failed")
        training = {"steps": DISTILL_STEPS, "globalBatchSize": 16, "learningRate": 0.002, "seed": 77}
        return {
            "apiVersion": "modelcompression.io/v1alpha1",
            "kind": "CompressionRun",
            "metadata": {"name": self.name, "uid": "1-2-3", "generation": 1},
            "spec": {
                "teacher": {"model": "file:demo/teacher"},
                "dataset": {"source": "file:../text", "sequenceLength": 128},
                "finetune": training | {"steps": 60, "learningRate": 0.0005},
                "students": [{"name": student.name, "prune": {}} for student in self.students],
                "distill": training,
                "export": {"dtype": "float32"},
            },
            "status": {
                "phase": self.phase,
                "startTime": clock(0),
                **({"completionTime": clock(self.seconds)} if finished else {}),
                "conditions": [{"type": "Ready", "status": str(finished), "reason": "X", "message": "A reason."}],
                "teacher": TEACHER.to_json() | {"parameterCount": TEACHER.parameters},
                "steps": self.steps,
                "students": [self._figures(student) for student in self.students],
            },
        }

    def _figures(self, student: Student) -> dict[str, Any]:
        order = list(Phase)
        loss = {"teacher": TEACHER_LOSS, "correctedTeacher": CORRECTED_LOSS}
        if order.index(student.until) < order.index(Phase.DISTILL):
            return {"name": student.name, "validationLoss": loss}
        return {
            "name": student.name,
            "parameters": student.architecture.parameters,
            "compressionRatio": student.architecture.parameters / TEACHER.parameters,
            "validationLoss": loss | {"pruned": student.pruned, "distilled": student.distilled},
            "tokensPerSecond": 4410.0,
            **({"sample": student.sample} if student.until is Phase.EXPORT else {}),
        }


def logits_of(kept: float) -> LogitsResult:
    """Of a teacher of which this share of the probability is kept."""
    measured = TeacherMeasured(loss=CORRECTED_LOSS, validation_sequences=256)
    return LogitsResult(tokens=245_760, top_k=64, mass_kept=kept, bytes_per_token=324, teacher=measured)


def history(first: float, last: float, steps: int, scores: Sequence[float] = ()) -> bytes:
    """A training phase's history.json: a loss that falls from `first` to `last` and wobbles."""

    def at(step: int) -> float:
        return last + (first - last) * (math.exp(-5 * step / steps) - math.exp(-5)) / (1 - math.exp(-5))

    train = [{"step": n, "loss": at(n) - 0.1 + 0.05 * math.sin(n * 12.9898)} for n in range(1, steps + 1)]
    validation = [{"step": n, "loss": at(n)} for n in range(0, steps + 1, steps // 6)]
    told = [{"step": n * steps // (len(scores) - 1), "name": "calls", "score": score} for n, score in enumerate(scores)]
    return json.dumps({"train": train, "validation": validation, "scores": told}).encode()


def importance(student: Student) -> dict[str, bytes]:
    """What prune leaves beside the model: scores of every axis, and the best ones as chosen."""
    random = np.random.default_rng(1)
    kept = [layer - 1 for layer in student.kept_layers]
    layers = random.gamma(2.0, 0.02, TEACHER.layers).astype(np.float32)
    scores = {
        "hidden": random.lognormal(0.0, 0.6, TEACHER.hidden_size).astype(np.float32),
        "ffn": random.lognormal(0.0, 0.8, (TEACHER.layers, TEACHER.ffn_hidden_size)).astype(np.float32),
        "heads": random.gamma(2.0, 1.0, (TEACHER.layers, TEACHER.attention_heads)).astype(np.float32),
        "layers": np.where(np.isin(np.arange(TEACHER.layers), kept), layers + 0.1, layers),
    }
    width = student.architecture

    def best(axis: str, count: int, whole: int) -> list[Any] | None:
        return None if count == whole else np.argsort(-scores[axis], axis=-1)[..., :count].tolist()

    ffn = best("ffn", width.ffn_hidden_size, TEACHER.ffn_hidden_size)
    heads = best("heads", width.attention_heads, TEACHER.attention_heads)
    chosen = {
        "layers": list(student.kept_layers),
        "hidden": best("hidden", width.hidden_size, TEACHER.hidden_size),
        "ffn": ffn and [ffn[layer] for layer in kept],
        "heads": heads and [heads[layer] for layer in kept],
    }
    return {"importance.safetensors": save(scores), "chosen.json": json.dumps(chosen).encode()}


def clock(seconds: int) -> str:
    """`seconds` into the run as a status's time."""
    return f"2026-11-20T10:{seconds // 60:02}:{seconds % 60:02}Z"
