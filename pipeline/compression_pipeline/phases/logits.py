"""logits: run the teacher once over the text of a distillation, and keep what it expects after every token.

Distillations with `teacherLogits: Cached` read that in place of the teacher.
"""

import shutil
import time
from pathlib import Path

import torch

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import LogitsJob, LogitsResult, SourceLosses, TeacherMeasured, digest
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, Model, start_engine
from compression_pipeline.errors import Interrupted, TransientError, UserError
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.phases import measuring
from compression_pipeline.store.files import link, make_folder
from compression_pipeline.teacher_logits import Likeliest, Parts, Written, write, written
from compression_pipeline.text.batches import TrainingSequences, ValidationData, ValidationLoss

PER_PART = "sequencesPerPart"
"""What the artifact's manifest tells, among its metrics."""

FOLDER = "logits"
"""Of the artifact: its parts. Of an attempt: those that it has written so far."""


def run(job: LogitsJob, context: Context) -> LogitsResult:
    """Write the logits and publish them as `logits-<key>`: `logits/`, see `teacher_logits`.

    Raises:
        UserError: the teacher computes no numbers, or knows fewer tokens than are to be kept; the text is too short.
        Interrupted: told to stop; another attempt goes on behind the parts that are written.
    """
    settings = job.logits
    with start_engine(job, context, precision=settings.precision, seed=settings.seed) as engine:
        made = measuring.made_before(job, context, engine, "logits")
        if made is not None:
            return _measured(job, context, engine, made)
        return _cached(job, context, engine)


def _cached(job: LogitsJob, context: Context, engine: Engine) -> LogitsResult:
    """Write what is not there yet, and publish."""
    settings, validation = job.logits, measuring.validation_of(job, context)
    model, measured = _teacher(job, context, engine, validation)
    sequences = TrainingSequences(
        context.store.open(job.data).data,
        settings.seed,
        engine.device,
        sequence_length=job.sequence_length,
        attention=job.document_attention,
    )
    parts, folder, made_of = Parts.of(settings, job.sequence_length), context.folder / FOLDER, _files(job, context)
    make_folder(folder)
    if engine.rank == 0:
        _take_over(job, context, parts, folder, made_of)
    engine.agree(None)  # the others look for parts once they are all there
    started, rounds = time.monotonic(), -(-len(parts) // engine.data_size)
    computed = 0
    for number in range(rounds):
        part = number * engine.data_size + engine.data_rank
        path = parts.file(folder, part)
        if part < len(parts) and written(path, made_of, len(parts.sequences(part))) is None:
            write(path, _computed(job, engine, model, sequences, parts.sequences(part)), made_of)
            computed += len(parts.sequences(part))
        done = parts.sequences(min((number + 1) * engine.data_size, len(parts)) - 1).stop
        rate = computed * engine.data_size / (time.monotonic() - started)
        context.events.progress(
            done,
            settings.sequences,
            unit="sequences",
            tokens_per_second=rate * job.sequence_length or None,
            eta_seconds=(settings.sequences - done) / rate if rate else None,
        )
        if engine.any_rank(context.stop_requested()):
            raise Interrupted("was told to stop (SIGTERM)")
    seconds = time.monotonic() - started
    del model
    engine.free()
    found: list[Written] = engine.agree(_whole(parts, folder, made_of) if engine.rank == 0 else [])
    tokens = settings.sequences * job.sequence_length
    result = _result(
        job,
        validation,
        measured,
        mass=sum(one.mass for one in found) / tokens,
        rate=computed * engine.data_size * job.sequence_length / seconds if computed else None,
    )
    if engine.rank == 0:
        with context.store.draft("logits", job.artifact_key) as draft:
            (draft.path / FOLDER).mkdir()
            for number, one in enumerate(found):
                path, target = parts.file(folder, number), parts.file(draft.path / FOLDER, number)
                if not link(path, target):
                    shutil.copyfile(path, target)
                draft.hashed(target, one.sha256)
            published = draft.publish(
                config=job.to_json(),
                inputs={"data": job.data, "teacher": job.teacher},
                result=result.to_json(),
                metrics={
                    PER_PART: parts.size,
                    "validationSequences": len(validation),
                    "precision": engine.precision.value,
                },
            )
        result = measuring.published_result(job, context, published, LogitsResult)
    return result


def _measured(job: LogitsJob, context: Context, engine: Engine, made: Artifact) -> LogitsResult:
    """The result for logits that this step or one that measures otherwise has written."""
    known = measuring.own(job, context, engine, made, LogitsResult)
    if known is not None:
        return known
    validation, told = measuring.validation_of(job, context), made.result(LogitsResult)
    _, measured = _teacher(job, context, engine, validation)
    result = _result(job, validation, measured, mass=told.mass_kept, rate=told.tokens_per_second)
    result = result.model_copy(update={"digest": made.digest})
    if engine.rank == 0:
        measuring.note(job, context, made, result)
    return result


def _teacher(
    job: LogitsJob, context: Context, engine: Engine, validation: ValidationData
) -> tuple[Model, ValidationLoss]:
    """The teacher, sound, and its validation loss."""
    architecture = read_architecture(context.store.open(job.teacher).model)
    if job.logits.top_k > architecture.vocabulary_size:
        raise UserError(
            f"distill.cachedTopK: {job.logits.top_k} is more than the {architecture.vocabulary_size} tokens of the "
            "teacher's vocabulary; lower it"
        )
    per_pass = job.logits.micro_batch_size
    return measuring.measured_teacher(job, context, engine, architecture, validation, per_pass=per_pass)


def _computed(job: LogitsJob, engine: Engine, model: Model, sequences: TrainingSequences, wanted: range) -> Likeliest:
    """Of these sequences, in main memory."""
    settings, found = job.logits, list[Likeliest]()
    for start in range(wanted.start, wanted.stop, settings.micro_batch_size):
        batch = sequences.batch(range(start, min(start + settings.micro_batch_size, wanted.stop)))
        logits = engine.logits(model, batch)
        found.append(Likeliest.of(logits, settings.top_k, settings.temperatures).to(torch.device("cpu")))
        if not bool(found[-1].logs.isfinite().all()):
            raise UserError(
                f"spec.teacher.model: its logits are not finite in sequence {start + 1} of the training text; use "
                "distill.precision FP32, or another teacher"
            )
    return Likeliest.joined(found)


def _files(job: LogitsJob, context: Context) -> str:
    """Digest of the files that the logits are computed from."""
    return digest({name: context.store.open(name).content for name in job.inputs})


def _take_over(job: LogitsJob, context: Context, parts: Parts, folder: Path, made_of: str) -> None:
    """Take the parts that earlier attempts have written of the same files."""
    earlier = [one / FOLDER for one in context.store.earlier_attempts(job.fingerprint) if one != context.folder]
    for number in range(len(parts)):
        target, sequences = parts.file(folder, number), len(parts.sequences(number))
        found = (parts.file(other, number) for other in earlier)
        source = next((one for one in found if written(one, made_of, sequences) is not None), None)
        if source is not None and written(target, made_of, sequences) is None:
            for one, other in ((source, target), (source.with_suffix(".json"), target.with_suffix(".json"))):
                if not link(one, other):
                    shutil.copyfile(one, other)


def _whole(parts: Parts, folder: Path, made_of: str) -> list[Written]:
    """What is known of every part."""
    found = [written(parts.file(folder, number), made_of, len(parts.sequences(number))) for number in range(len(parts))]
    if None in found:
        raise TransientError(f"{parts.file(folder, found.index(None))} is not there, which another rank has written")
    return [one for one in found if one is not None]


def _result(
    job: LogitsJob, validation: ValidationData, measured: ValidationLoss, *, mass: float, rate: float | None
) -> LogitsResult:
    sources: list[SourceLosses] = measuring.by_source(validation, {"teacher": measured.by_source})
    return LogitsResult(
        tokens=job.logits.sequences * job.sequence_length,
        top_k=job.logits.top_k,
        bytes_per_token=job.logits.bytes_per_token,
        mass_kept=mass,
        tokens_per_second=rate,
        teacher=TeacherMeasured(loss=measured.loss, validation_sequences=len(validation), source_losses=sources),
    )
