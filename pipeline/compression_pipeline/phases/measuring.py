"""Weights that exist are measured, not made again: what only measures is no part of their key."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import (
    Architecture,
    DistillJob,
    FinetuneJob,
    LogitsJob,
    Precision,
    Record,
    SearchJob,
    SourceLosses,
)
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, Model, State
from compression_pipeline.engines.soundness import check_sound
from compression_pipeline.errors import Interrupted, UserError
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.phases.remembering import Measured, remembered
from compression_pipeline.store.published import Published
from compression_pipeline.text.batches import ValidationData, ValidationLoss, sequences_per_pass

Result = TypeVar("Result", bound=Record)

_Measuring = FinetuneJob | DistillJob | LogitsJob

WHOSE = {"teacher": "the teacher", "corrected": "the corrected teacher"}
"""What models are called by their role; the others are students."""


def made_before(job: _Measuring, context: Context, engine: Engine, phase: str) -> Artifact | None:
    """The artifact of the step, where this step or one that measures otherwise has made it. Every rank calls it."""
    name = f"{phase}-{job.artifact_key}"
    # What a volume shows to one node it may not show to another yet.
    there = engine.agree(engine.rank == 0 and context.sound(context.store.find(name)) is not None)
    return context.store.open(name) if there else None


def check_layout(job: FinetuneJob | DistillJob, models: Mapping[str, Architecture]) -> None:
    """Raises UserError where a model does not split as the job asks. `models`: by whose sizes they are."""
    for whose, architecture in models.items():
        for field, sentence in job.parallelism.faults(architecture, whose):
            raise UserError(f"parallelism.{field}: {sentence}")


def own(job: _Measuring, context: Context, engine: Engine, made: Artifact, result: type[Result]) -> Result | None:
    """What this very step has told of the artifact, where it made it; its note, which may be lost, is written again."""
    if _measured_otherwise(made, job):
        return None
    return published_result(job, context, made, result) if engine.rank == 0 else made.result(result)


def validation_of(job: FinetuneJob | DistillJob | LogitsJob | SearchJob, context: Context) -> ValidationData:
    """The sequences that the step measures losses over. Raises UserError where the text is shorter than one."""
    text = context.store.open(job.data).data
    return ValidationData(
        text,
        sequence_length=job.sequence_length,
        samples=job.validation.samples,
        attention=job.document_attention,
    )


def losses(
    job: FinetuneJob | DistillJob,
    context: Context,
    engine: Engine,
    models: Mapping[str, str],
    data: ValidationData,
) -> dict[str, ValidationLoss]:
    """Validation losses of published models over `data`, by role, as training computes them.

    `models`: role -> artifact. Raises UserError that says whose loss is no number, and which tensor is to blame if one
    is.
    """
    settings = job.finetune if isinstance(job, FinetuneJob) else job.distill
    found: dict[str, ValidationLoss] = {}
    for number, (role, name) in enumerate(models.items(), start=1):
        folder = context.store.open(name).model
        architecture = read_architecture(folder)
        model = loaded(engine, architecture, folder, sequence_length=job.sequence_length)
        loss = engine.validate(model, data, sequences_per_pass=sequences_per_pass(settings, engine))
        whose = WHOSE.get(role, f"the {role} student")
        check_loss(engine, lambda model=model: engine.state(model), architecture, loss.loss, whose=whose)
        found[role] = loss
        context.events.progress(number, len(models), unit="models", doing="measure")
        del model
        engine.free()
    return found


def by_source(data: ValidationData, losses: Mapping[str, Sequence[float]]) -> list[SourceLosses]:
    """What a result tells of several sources; nothing of the only one. `losses`: role -> loss of each source."""
    if len(data.sources) == 1:
        return []
    return [
        SourceLosses.model_validate({"source": source, **{role: each[n] for role, each in losses.items()}})
        for n, source in enumerate(data.sources)
    ]


def loaded(engine: Engine, architecture: Architecture, folder: Path, *, sequence_length: int) -> Model:
    """The model of a Hugging Face checkpoint. Raises what `Engine.build` and `Engine.load` do."""
    model = engine.build(architecture, sequence_length=sequence_length)
    engine.load(model, architecture, folder)
    return model


def check_loss(
    engine: Engine, state: Callable[[], State], architecture: Architecture, loss: float, *, whose: str
) -> None:
    """Refuse a model, untouched so far, whose validation loss is no number; every rank calls it. See `check_sound`."""
    if math.isfinite(loss):
        return
    weights = state()
    engine.on_rank_0(
        lambda tick: check_sound(
            lambda: engine.tensors(weights, architecture),
            loss,
            whose=whose,
            what="its validation loss",
            precision=engine.precision,
        )
    )


def torch_type(precision: Precision) -> torch.dtype:
    """The type of parameters in an arithmetic."""
    return torch.bfloat16 if precision is Precision.BF16 else torch.float32


def published_result(job: _Measuring, context: Context, artifact: Artifact, result: type[Result]) -> Result:
    """The result of the step that has just published, or found that another job was first. For rank 0.

    Raises Interrupted where that job measured the same weights otherwise.
    """
    if _measured_otherwise(artifact, job):
        raise Interrupted("another job has made the same weights first; the next attempt measures those")
    found = artifact.result(result)
    if job.key is not None:
        note(job, context, artifact, found)
    return found


def note(job: _Measuring, context: Context, artifact: Artifact, result: Record) -> None:
    """Let a later job of this step find what it measured. For rank 0."""
    told = {name: value for name, value in result.to_json().items() if name not in ("cached", "digest")}
    context.store.record_published(job.fingerprint, Published(artifact=artifact.name, result=told))


def _measured_otherwise(artifact: Artifact, job: _Measuring) -> bool:
    return artifact.manifest.config.get("fingerprint", job.fingerprint) != job.fingerprint


def measured_teacher(
    job: DistillJob | LogitsJob,
    context: Context,
    engine: Engine,
    architecture: Architecture,
    validation: ValidationData,
    *,
    per_pass: int,
) -> tuple[Model, ValidationLoss]:
    """The job's teacher, sound, and its validation loss, `per_pass` sequences at a time."""
    artifact = context.store.open(job.teacher)
    model = loaded(engine, architecture, artifact.model, sequence_length=job.sequence_length)
    measured_on = {
        "teacher": artifact.content,
        "sequences": len(validation),
        "sequencesPerPass": per_pass,
        "ranks": engine.world_size,
    }
    found = remembered(
        context,
        job.fingerprint,
        engine,
        "teacher-loss",
        measured_on,
        lambda: Measured(engine.validate(model, validation, sequences_per_pass=per_pass)),
    ).loss
    check_loss(engine, lambda: engine.state(model), architecture, found.loss, whose="the teacher")
    return model, found
