"""distill: the student learns from the (corrected) teacher what pruning made it forget."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import (
    Architecture,
    DistillJob,
    DistillResult,
    ExportDtype,
    Passes,
    describe_losses,
    loss_faults,
    won_back,
)
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime, free, runtime, share_folder
from compression_pipeline.phases import measuring
from compression_pipeline.proof import SEQUENCES, TOKENS, Reference, kept_positions

if TYPE_CHECKING:
    from compression_pipeline.megatron.data import ValidationData
    from compression_pipeline.megatron.history import History


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
    faults = [f"distill.{field}: {sentence}" for field, sentence in loss_faults(settings.losses, teacher, student)]
    if faults:
        raise UserError("; ".join(faults))
    with runtime(
        job,
        precision=settings.precision,
        deterministic=settings.deterministic,
        seed=settings.seed,
        tell=context.events.info,
    ) as current:
        share_folder(context, current)
        made = measuring.made_before(job, context, current, "distill")
        if made is not None:
            return _measured(job, context, current, made)
        return distill(job, context, current, teacher, student)


def distill(
    job: DistillJob, context: Context, runtime: Runtime, teacher: Architecture, student: Architecture
) -> DistillResult:
    """`run` within a runtime that is there already, of models of these sizes."""
    # Megatron is imported by these, and is best imported within the runtime.
    from compression_pipeline.megatron.history import metrics_of, publish_curves

    student_files = context.store.open(job.pruned).model
    validation = measuring.validation_of(job, context)
    trained = _trained(job, context, runtime, teacher, student, validation)
    teacher_loss, history, state = trained.teacher_loss, trained.history, trained.state
    free(runtime)
    last = history.validation[-1].loss
    rounded = rounded_losses(job, context, runtime, student, state, validation, last)
    free(runtime)
    result = DistillResult(
        teacher_loss=teacher_loss,
        pruned_loss=history.validation[0].loss,
        distilled_loss=last,
        validation_sequences=len(validation),
        rounded_losses=rounded,
        tokens_per_second=history.tokens_per_second,
        losses=describe_losses(job.distill.losses, teacher, student),
    )
    if runtime.rank == 0:
        with context.store.draft("distill", job.artifact_key) as draft:
            conversion.write(state, student, draft.path / "model", template=student_files, dtype=torch.float32)
            publish_curves(history, context.folder, draft.path)
            reference(state, student, validation, runtime).write(draft.path)
            published = draft.publish(
                config=job.to_json(),
                inputs={"data": job.data, "teacher": job.teacher, "pruned": job.pruned},
                result=result.to_json(),
                metrics={
                    **metrics_of(history, trained.passes),
                    "recovered": won_back(result.teacher_loss, result.pruned_loss, result.distilled_loss),
                    "validationSequences": len(validation),
                    "precision": runtime.precision.value,
                },
            )
        result = measuring.settled(job, context, published, DistillResult)
    return result


def _measured(job: DistillJob, context: Context, runtime: Runtime, made: Artifact) -> DistillResult:
    """The result for weights that this step or one that measures otherwise has made: nothing is trained."""
    known = measuring.own(job, context, runtime, made, DistillResult)
    if known is not None:
        return known
    models = {"teacher": job.teacher, "pruned": job.pruned, "distilled": made.name}
    validation = measuring.validation_of(job, context)
    found = measuring.losses(job, context, runtime, models, validation)
    reader = conversion.CheckpointReader(made.model)
    student = reader.files.architecture
    state = dict(conversion.to_megatron(student, reader))
    result = DistillResult(
        teacher_loss=found["teacher"],
        pruned_loss=found["pruned"],
        distilled_loss=found["distilled"],
        validation_sequences=len(validation),
        rounded_losses=rounded_losses(job, context, runtime, student, state, validation, found["distilled"]),
        digest=made.digest,
        tokens_per_second=made.result(DistillResult).tokens_per_second,
        losses=made.result(DistillResult).losses,
    )
    if runtime.rank == 0:
        measuring.note(job, context, made, result)
    return result


@dataclass(frozen=True)
class _Trained:
    """A student after its distillation."""

    teacher_loss: float
    history: "History"
    state: dict[str, Tensor]
    """Its weights."""
    passes: Passes


def _trained(
    job: DistillJob,
    context: Context,
    runtime: Runtime,
    teacher: Architecture,
    student: Architecture,
    validation: "ValidationData",
) -> _Trained:
    """Distill; teacher and optimizer go when this returns."""
    from compression_pipeline.megatron.checkpoint import Checkpoints
    from compression_pipeline.megatron.data import TrainingData
    from compression_pipeline.megatron.distillation import DistillationLoss, StudentAlone, combine, of_student
    from compression_pipeline.megatron.flops import forward_flops, training_flops
    from compression_pipeline.megatron.objective import Objective
    from compression_pipeline.megatron.remembered import remembered
    from compression_pipeline.megatron.soundness import check_sound
    from compression_pipeline.megatron.training import train
    from compression_pipeline.megatron.validation import validation_loss

    settings, length = job.distill, job.sequence_length
    text = context.store.open(job.data).data
    data = TrainingData(text, settings, runtime, sequence_length=length)

    def loss_of(model: Any) -> float:
        return validation_loss(model, validation, runtime, context, batch_size=data.micro_batch_size)

    models: list[Any] = []
    for architecture, name in ((teacher, job.teacher), (student, job.pruned)):
        models.append(build(architecture, runtime, sequence_length=length))
        conversion.load_into(models[-1], architecture, context.store.open(name).model)
    measured_on = {
        "teacher": context.store.open(job.teacher).content,
        "sequences": len(validation),
        "sequencesPerPass": data.micro_batch_size,
        "ranks": runtime.world_size,
    }
    teacher_loss = remembered(
        context, job.fingerprint, runtime, "teacher-loss", measured_on, lambda: loss_of(models[0])
    )
    context.events.metric("teacherLoss", teacher_loss)
    loss = "its validation loss"
    check_sound(models[0], teacher, teacher_loss, whose="the teacher", what=loss, runtime=runtime)
    objective = Objective.of(settings.losses, teacher, student, runtime, seed=settings.seed)
    model = combine(models[1], models[0], objective)
    state: dict[str, Tensor] = {}
    history = train(
        model,
        loss=DistillationLoss(model, objective),
        settings=settings,
        data=data,
        validate=lambda: loss_of(StudentAlone(model)),
        check=lambda value: check_sound(
            of_student(model.named_parameters()), student, value, whose="the pruned student", what=loss, runtime=runtime
        ),
        flops_per_token=training_flops(student, length) + forward_flops(teacher, length),
        runtime=runtime,
        context=context,
        checkpoints=Checkpoints(context, job.fingerprint, runtime, keep=settings.keep_checkpoints),
        finished=lambda optimizer: state.update(of_student(optimizer.weights().items())),
    )
    return _Trained(teacher_loss, history, state, data.passes(settings.steps))


def rounded_losses(
    job: DistillJob,
    context: Context,
    runtime: Runtime,
    student: Architecture,
    state: Mapping[str, Tensor],
    validation: "ValidationData",
    trained: float,
) -> dict[str, float]:
    """Validation loss of the weights rounded to each type that an export may have; every rank calls it.

    The arithmetic is that of training, as in all figures that these are compared with. So float32 weights, and those of
    training's own type, have the loss that training measured last (`trained`).
    """
    from compression_pipeline.megatron.data import sequences_per_pass
    from compression_pipeline.megatron.validation import validation_loss

    batch_size = sequences_per_pass(job.distill, runtime)
    model = build(student, runtime, sequence_length=validation.sequence_length)
    losses: dict[str, float] = {}
    for dtype in ExportDtype:
        kind = getattr(torch, dtype.value)
        if kind in (torch.float32, runtime.dtype):
            losses[dtype.value] = trained
            continue
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if runtime.leads_data_group:  # who alone may have them
                    parameter.copy_(state[name].to(kind))
                dist.broadcast(parameter, group=runtime.data_group, group_src=0)
        loss = validation_loss(model, validation, runtime, context, batch_size=batch_size)
        if math.isfinite(loss):
            losses[dtype.value] = loss
    return losses


def reference(
    state: Mapping[str, Tensor], student: Architecture, validation: "ValidationData", runtime: Runtime
) -> Reference:
    """Logits of the first validation sequences in float32, from weights rounded to each type that an export may have.

    A model of its own: ModelOpt leaves attributes on a distilled one that break its forward pass.
    """
    length = min(validation.sequence_length, TOKENS)
    batch = validation.batch(range(min(SEQUENCES, len(validation))), runtime.device)
    tokens, places = batch.tokens[:, :length], batch.positions[:, :length]
    positions = kept_positions(len(tokens), length, student.vocabulary_size)
    model = build(student, dataclasses.replace(runtime, dtype=torch.float32), sequence_length=length).eval()
    logits: dict[ExportDtype, Tensor] = {}
    with torch.no_grad():
        for dtype in ExportDtype:
            for name, parameter in model.named_parameters():
                parameter.copy_(state[name].to(getattr(torch, dtype.value)))
            output = cast("Tensor", model(tokens, places, cast("Any", None)))
            logits[dtype] = output[:, positions.to(output.device)].float().cpu()
    return Reference(tokens.cpu(), positions, logits)
