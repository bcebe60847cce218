"""What teaches a student: the teacher itself, or what an earlier step has written of its logits."""

from dataclasses import dataclass

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import (
    FORMER_NAMES,
    Architecture,
    DistillJob,
    LogitsConfig,
    LogitsResult,
    Phase,
)
from compression_pipeline.config import measuring as step_measuring
from compression_pipeline.config.members import LENIENT
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, Model
from compression_pipeline.phases import logits, measuring
from compression_pipeline.teacher_logits import CachedLogits
from compression_pipeline.text.batches import ValidationData, ValidationLoss, sequences_per_pass


@dataclass(frozen=True)
class Teaching:
    """A teacher, for as long as its student is trained."""

    loss: ValidationLoss
    model: Model | None
    """None where its logits are read."""
    logits: CachedLogits | None


def teaching(
    job: DistillJob, context: Context, engine: Engine, teacher: Architecture, validation: ValidationData
) -> Teaching:
    """The job's teacher. It is not loaded where its logits are read and its validation loss is known.

    Raises UserError where it computes no numbers.
    """
    written = context.store.open(job.logits) if job.logits is not None else None
    known = told_loss(job, context, engine, validation)
    if written is not None and known is not None:
        return Teaching(known, None, _cached(written))
    per_pass = sequences_per_pass(job.distill, engine)
    model, loss = measuring.measured_teacher(job, context, engine, teacher, validation, per_pass=per_pass)
    if written is None:
        return Teaching(loss, model, None)
    del model
    engine.free()
    return Teaching(loss, None, _cached(written))


def told_loss(job: DistillJob, context: Context, engine: Engine, validation: ValidationData) -> ValidationLoss | None:
    """The teacher's loss over the same sequences, where its logits are read and a step has measured it that wrote or
    found these: that of this run is known by what it measured. Every rank calls it: a volume may show the note to some.
    """
    if job.logits is None:
        return None
    written, known = context.store.open(job.logits), None
    if engine.rank == 0:
        key = written.manifest.key
        step = step_measuring(key, {FORMER_NAMES["validation"]: job.validation})
        steps = written, context.store.find_published(Phase.LOGITS, step, key)
        told = (one.result(LogitsResult).teacher for one in steps if one is not None)
        same = next((one for one in told if one.validation_sequences == len(validation)), None)
        known = same and ValidationLoss(same.loss, tuple(one.teacher for one in same.source_losses))
    return engine.agree(known)


def _cached(written: Artifact) -> CachedLogits:
    of = LogitsConfig.model_validate(written.manifest.config["logits"], **LENIENT)
    per_part = int(written.manifest.metrics[logits.PER_PART])
    return CachedLogits(written.path / logits.FOLDER, of, per_part)


def in_words(job: DistillJob, context: Context) -> str | None:
    """What is read in place of the teacher, for report and card: a sentence without its full stop."""
    if job.logits is None:
        return None
    told = context.store.open(job.logits).result(LogitsResult)
    summed = any(loss.rest_temperature is not None for loss in job.distill.losses)
    return (
        f"the teacher's {told.top_k:,} likeliest tokens after each token, which have {100 * told.mass_kept:.1f} % of "
        f"its probability{'; all others count as one' if summed else ''} (teacherLogits: Cached)"
    )
