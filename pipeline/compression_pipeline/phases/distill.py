"""distill: the student learns from the (corrected) teacher what pruning made it forget."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import (
    Architecture,
    DistillJob,
    DistillResult,
    ExportDtype,
    GateFigures,
    Passes,
    describe_losses,
    loss_faults,
    misses,
    resolved_losses,
    split_faults,
    won_back,
)
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, Extension, State, Training, start_engine
from compression_pipeline.engines.history import History, ValidationEntry, metrics_of, publish_curves
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.huggingface.writer import write_checkpoint
from compression_pipeline.losses import tensor_faults
from compression_pipeline.phases import measuring
from compression_pipeline.phases.best import BestWeights
from compression_pipeline.phases.intermediate import IntermediateExports
from compression_pipeline.phases.teaching import in_words, teaching, told_loss
from compression_pipeline.phases.watching import TaskScores
from compression_pipeline.reference_logits import SEQUENCES, TOKENS, Reference, kept_positions
from compression_pipeline.text.batches import Batch, TrainingData, ValidationData, ValidationLoss, sequences_per_pass

OF_TRAINING = (
    "tokens_per_second",
    "losses",
    "read_in_place",
    "extended_steps",
    "best_step",
    "best_score",
    "task_scores",
)
"""Figures of a result that stay what they were where the student is measured otherwise."""


def run(job: DistillJob, context: Context) -> DistillResult:
    """Distill the student and publish it as `distill-<key>`.

    The artifact: `model/`, `history.json`, `tensorboard/`, and `reference.safetensors` for export's proof.

    Raises:
        UserError: teacher and student don't share a vocabulary, a loss asks for what they don't have, the text is too
            short, the batch does not divide among the ranks, the loss is not finite.
        Interrupted: told to stop; another attempt goes on from the checkpoint.
    """
    settings = job.distill
    teacher, student = (read_architecture(context.store.open(name).model) for name in (job.teacher, job.pruned))
    if teacher.vocabulary_size != student.vocabulary_size:
        raise UserError(
            f"the student {job.pruned} has {student.vocabulary_size:,} tokens and the teacher {job.teacher} "
            f"{teacher.vocabulary_size:,}; prune the student out of this teacher"
        )
    faults = loss_faults(settings.losses, teacher, student, engine=job.engine, likeliest=settings.likeliest)
    measuring.check_layout(job, {"the teacher's": teacher, "the student's": student})
    sentences = [f"distill.{field}: {sentence}" for field, sentence in faults]
    if not sentences and job.parallelism.tensor > 1:
        sentences += tensor_faults(resolved_losses(settings.losses, teacher, student), teacher, student)
    layout = split_faults(settings, job.parallelism)
    sentences += [f"phases.distill.parallelism.{field}: {sentence}" for field, sentence in layout]
    if sentences:
        raise UserError("; ".join(sentences))
    with start_engine(
        job, context, precision=settings.precision, deterministic=settings.deterministic, seed=settings.seed
    ) as engine:
        made = measuring.made_before(job, context, engine, "distill")
        if made is not None:
            return _measured(job, context, engine, made)
        return distill(job, context, engine, teacher, student)


def distill(
    job: DistillJob, context: Context, engine: Engine, teacher: Architecture, student: Architecture
) -> DistillResult:
    """`run` on an engine that has started, of models of these sizes."""
    student_files = context.store.open(job.pruned).model
    validation = measuring.validation_of(job, context)
    trained = _trained(job, context, engine, teacher, student, validation)
    teacher_loss, history, state = trained.teacher.loss, trained.history, trained.state
    engine.free()
    last = trained.kept.loss
    rounded = rounded_losses(job, engine, student, state, validation, last)
    engine.free()
    proof = reference(engine, state, student, validation)
    result = DistillResult(
        teacher_loss=teacher_loss,
        pruned_loss=history.validation[0].loss,
        distilled_loss=last,
        validation_sequences=len(validation),
        rounded_losses=rounded,
        source_losses=measuring.by_source(
            validation,
            {
                "teacher": trained.teacher.by_source,
                "pruned": history.validation[0].by_source,
                "distilled": trained.kept.by_source,
            },
        ),
        tokens_per_second=history.tokens_per_second,
        losses=describe_losses(job.distill.losses, teacher, student),
        read_in_place=in_words(job, context),
        extended_steps=history.total_steps - job.distill.steps or None,
        best_step=trained.kept.step if job.distill.keep_best else None,
        best_score=history.scores_at(trained.kept.step).get(job.distill.best_task or ""),
        task_scores=history.scores_at(trained.kept.step),
    )
    if engine.rank == 0:
        with context.store.draft("distill", job.artifact_key) as draft:
            write_checkpoint(
                engine.tensors(state, student),
                student,
                draft.path / "model",
                template=student_files,
                dtype=torch.float32,
            )
            publish_curves(history, context.folder, draft.path)
            proof.write(draft.path)
            published = draft.publish(
                config=job.to_json(),
                inputs={"data": job.data, "teacher": job.teacher, "pruned": job.pruned},
                result=result.to_json(),
                metrics={
                    **metrics_of(history, trained.passes),
                    "recovered": won_back(result.teacher_loss, result.pruned_loss, result.distilled_loss),
                    "validationSequences": len(validation),
                    "precision": engine.precision.value,
                },
            )
        result = measuring.published_result(job, context, published, DistillResult)
    return result


def _measured(job: DistillJob, context: Context, engine: Engine, made: Artifact) -> DistillResult:
    """The result for weights that this step or one that measures otherwise has made: nothing is trained."""
    known = measuring.own(job, context, engine, made, DistillResult)
    if known is not None:
        return known
    models = {"pruned": job.pruned, "distilled": made.name}
    validation = measuring.validation_of(job, context)
    known = told_loss(job, context, engine, validation)
    teacher = {"teacher": job.teacher} if known is None else {}
    found = measuring.losses(job, context, engine, {**teacher, **models}, validation)
    found |= {"teacher": known} if known is not None else {}
    student = read_architecture(made.model)
    state = engine.read(student, made.model)
    told = made.result(DistillResult)
    result = DistillResult(
        teacher_loss=found["teacher"].loss,
        pruned_loss=found["pruned"].loss,
        distilled_loss=found["distilled"].loss,
        validation_sequences=len(validation),
        rounded_losses=rounded_losses(job, engine, student, state, validation, found["distilled"].loss),
        source_losses=measuring.by_source(validation, {role: one.by_source for role, one in found.items()}),
        digest=made.digest,
        **{name: getattr(told, name) for name in OF_TRAINING},
    )
    if engine.rank == 0:
        measuring.note(job, context, made, result)
    return result


@dataclass(frozen=True)
class _Trained:
    """A student after its distillation."""

    teacher: ValidationLoss
    history: History
    state: State
    """The weights that are kept."""
    kept: ValidationEntry
    """Their validation."""
    passes: Passes


def _trained(
    job: DistillJob,
    context: Context,
    engine: Engine,
    teacher: Architecture,
    student: Architecture,
    validation: ValidationData,
) -> _Trained:
    """Distill; teacher and optimizer go when this returns."""
    settings, length = job.distill, job.sequence_length
    taught = teaching(job, context, engine, teacher, validation)
    data = TrainingData(
        context.store.open(job.data).data,
        settings,
        engine,
        sequence_length=length,
        attention=job.document_attention,
        teacher=taught.logits,
    )
    context.events.metric("teacherLoss", taught.loss.loss)
    template = context.store.open(job.pruned).model
    small = measuring.loaded(engine, student, template, sequence_length=length)
    best = BestWeights(job, context, engine, student, template)
    scores = TaskScores(job, context, engine, student, template)
    exports = IntermediateExports(job, context, engine, student, template)

    def on_step(step: int, history: History, weights: Callable[[], State]) -> None:
        scores.on_step(step, history, weights)
        if settings.keep_best:
            best.on_step(step, history, weights)
        exports.on_step(step, history, weights)

    training = Training(
        fingerprint=job.fingerprint,
        settings=settings,
        architecture=student,
        data=data,
        validation=validation,
        check=lambda loss, state: measuring.check_loss(engine, state, student, loss, whose="the pruned student"),
        extension=extension(job, taught.loss.loss),
        on_step=on_step,
    )
    losses = resolved_losses(settings.losses, teacher, student)
    history, state = engine.distill(small, taught.model, training, of=teacher, losses=losses)
    kept = history.validation[-1]
    if settings.keep_best:
        kept, found = best.find(history)
        if found is not None:
            del state  # rank 0 has room for one of them
            state = engine.read(student, found)
    return _Trained(taught.loss, history, state, kept, data.passes(history.total_steps))


def extension(job: DistillJob, teacher_loss: float) -> Extension | None:
    """The steps that a student gets which misses the gate after `distill.steps`."""
    accept = job.accept
    if accept is None or accept.extend_steps is None:
        return None
    return Extension(
        accept.extend_steps, lambda history: misses(accept, GateFigures(_kept(job, history).loss, teacher_loss))
    )


def _kept(job: DistillJob, history: History) -> ValidationEntry:
    """The validation of the weights that would be kept, were this the end."""
    best = history.best(job.distill.best_task) if job.distill.keep_best else None
    return best or history.validation[-1]


def rounded_losses(
    job: DistillJob,
    engine: Engine,
    student: Architecture,
    state: State,
    validation: ValidationData,
    trained: float,
) -> dict[str, float]:
    """Validation loss of the weights rounded to each type that an export may have; every rank calls it.

    The arithmetic is that of training, as in all figures that these are compared with. So float32 weights, and those of
    training's own type, have the loss that training measured last (`trained`).
    """
    batch_size = sequences_per_pass(job.distill, engine)
    model = engine.build(student, sequence_length=validation.sequence_length)
    losses: dict[str, float] = {}
    for dtype in ExportDtype:
        kind = getattr(torch, dtype.value)
        if kind in (torch.float32, measuring.torch_type(engine.precision)):
            losses[dtype.value] = trained
            continue
        engine.fill(model, state, kind)
        loss = engine.validate(model, validation, sequences_per_pass=batch_size).loss
        if math.isfinite(loss):
            losses[dtype.value] = loss
    return losses


def reference(engine: Engine, state: State, student: Architecture, validation: ValidationData) -> Reference:
    """Logits of the first validation sequences in float32, from weights rounded to each type that an export may have;
    every rank calls it.

    A model of its own: a distilled one may no longer be fit for a forward pass. Causal attention over whole sequences,
    whatever documents are in them, because that is what plain transformers computes.
    """
    length = min(validation.sequence_length, TOKENS)
    batch = validation.batch(range(min(SEQUENCES, len(validation))), engine.device)
    tokens = batch.tokens[:, :length]
    batch = Batch(tokens, torch.arange(length, device=tokens.device).expand_as(tokens), batch.labels[:, :length])
    positions = kept_positions(len(batch.tokens), length, student.vocabulary_size)
    model = engine.build(student, sequence_length=length, exact=True)
    logits: dict[ExportDtype, torch.Tensor] = {}
    for dtype in ExportDtype:
        engine.fill(model, state, getattr(torch, dtype.value))
        found = engine.logits(model, batch)
        logits[dtype] = found[:, positions.to(found.device)].cpu()
    return Reference(batch.tokens.cpu(), positions, logits)
