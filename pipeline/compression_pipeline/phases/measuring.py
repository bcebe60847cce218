"""Weights that exist are measured, not made again: what only measures is no part of their key."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch.distributed as dist

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import DistillJob, FinetuneJob, Record
from compression_pipeline.context import Context
from compression_pipeline.errors import Interrupted
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.store.published import Published

if TYPE_CHECKING:
    from compression_pipeline.megatron.data import ValidationData
    from compression_pipeline.megatron.runtime import Runtime

Result = TypeVar("Result", bound=Record)

WHOSE = {"teacher": "the teacher", "corrected": "the corrected teacher"}
"""What models are called by their role; the others are students."""


def made_before(job: FinetuneJob | DistillJob, context: Context, runtime: "Runtime", phase: str) -> Artifact | None:
    """The artifact of the step, where this step or one that measures otherwise has made it. Every rank calls it."""
    name = f"{phase}-{job.artifact_key}"
    there = [runtime.rank == 0 and context.sound(context.store.find(name)) is not None]
    if runtime.world_size > 1:  # what a volume shows to one node it may not show to another yet
        dist.broadcast_object_list(there, src=0)
    return context.store.open(name) if there[0] else None


def own(
    job: FinetuneJob | DistillJob, context: Context, runtime: "Runtime", made: Artifact, result: type[Result]
) -> Result | None:
    """What this very step has told of the artifact, where it made it; its note, which may be lost, is written again."""
    if _measured_otherwise(made, job):
        return None
    return settled(job, context, made, result) if runtime.rank == 0 else made.result(result)


def validation_of(job: FinetuneJob | DistillJob, context: Context) -> "ValidationData":
    """The sequences that the step measures losses over. Raises UserError where the text is shorter than one."""
    from compression_pipeline.megatron.data import ValidationData

    text = context.store.open(job.data).data
    return ValidationData(text, sequence_length=job.sequence_length, samples=job.validation.samples)


def losses(
    job: FinetuneJob | DistillJob,
    context: Context,
    runtime: "Runtime",
    models: Mapping[str, str],
    data: "ValidationData",
) -> dict[str, float]:
    """Validation losses of published models over `data`, by role, as training computes them.

    `models`: role -> artifact. Raises UserError that says whose loss is no number, and which tensor is to blame if one
    is.
    """
    from compression_pipeline.megatron.data import sequences_per_pass
    from compression_pipeline.megatron.model import build
    from compression_pipeline.megatron.runtime import free
    from compression_pipeline.megatron.soundness import check_sound
    from compression_pipeline.megatron.validation import validation_loss

    settings = job.finetune if isinstance(job, FinetuneJob) else job.distill
    found: dict[str, float] = {}
    for number, (role, name) in enumerate(models.items(), start=1):
        folder = context.store.open(name).model
        architecture = read_architecture(folder)
        model = build(architecture, runtime, sequence_length=job.sequence_length)
        conversion.load_into(model, architecture, folder)
        loss = validation_loss(model, data, runtime, context, batch_size=sequences_per_pass(settings, runtime))
        whose, what = WHOSE.get(role, f"the {role} student"), "its validation loss"
        check_sound(model, architecture, loss, whose=whose, what=what, runtime=runtime)
        found[role] = loss
        context.events.progress(number, len(models), unit="models", doing="measure")
        del model
        free(runtime)
    return found


def settled(job: FinetuneJob | DistillJob, context: Context, artifact: Artifact, result: type[Result]) -> Result:
    """The result of the step that has just published, or found that another job was first. For rank 0.

    Raises Interrupted where that job measured the same weights otherwise.
    """
    if _measured_otherwise(artifact, job):
        raise Interrupted("another job has made the same weights first; the next attempt measures those")
    found = artifact.result(result)
    if job.key is not None:
        note(job, context, artifact, found)
    return found


def note(job: FinetuneJob | DistillJob, context: Context, artifact: Artifact, result: Record) -> None:
    """Let a later job of this step find what it measured. For rank 0."""
    told = {name: value for name, value in result.to_json().items() if name not in ("cached", "digest")}
    context.store.record_published(job.fingerprint, Published(artifact=artifact.name, result=told))


def _measured_otherwise(artifact: Artifact, job: FinetuneJob | DistillJob) -> bool:
    return artifact.manifest.config.get("fingerprint", job.fingerprint) != job.fingerprint
