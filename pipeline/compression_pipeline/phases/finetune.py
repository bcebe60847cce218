"""Teacher correction: train the teacher for a while on the text that its students will learn from."""

from typing import TYPE_CHECKING

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import FinetuneJob, FinetuneResult
from compression_pipeline.context import Context
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.megatron.runtime import Runtime, runtime, share_folder
from compression_pipeline.phases import measuring

if TYPE_CHECKING:
    from compression_pipeline.megatron.history import History


def run(job: FinetuneJob, context: Context) -> FinetuneResult:
    """Train the teacher and publish it as `finetune-<key>`: `model/`, `history.json`, `tensorboard/`.

    Raises:
        UserError: the text is too short, the batch does not divide among the ranks, the loss is not finite.
        Interrupted: told to stop; another attempt goes on from the checkpoint.
    """
    settings = job.finetune
    with runtime(
        job,
        precision=settings.precision,
        deterministic=settings.deterministic,
        seed=settings.seed,
        tell=context.events.info,
    ) as current:
        share_folder(context, current)
        made = measuring.made_before(job, context, current, "finetune")
        return correct(job, context, current) if made is None else _measured(job, context, current, made)


def correct(job: FinetuneJob, context: Context, runtime: Runtime) -> FinetuneResult:
    """`run` within a runtime that is there already."""
    # Megatron is imported by these, and is best imported within the runtime.
    from compression_pipeline.huggingface import conversion
    from compression_pipeline.megatron.checkpoint import Checkpoints
    from compression_pipeline.megatron.data import TrainingData
    from compression_pipeline.megatron.flops import training_flops
    from compression_pipeline.megatron.history import metrics_of, publish_curves
    from compression_pipeline.megatron.model import build
    from compression_pipeline.megatron.soundness import check_sound
    from compression_pipeline.megatron.training import LanguageModelLoss, train
    from compression_pipeline.megatron.validation import validation_loss

    settings = job.finetune
    text, teacher = context.store.open(job.data).data, context.store.open(job.teacher)
    validation = measuring.validation_of(job, context)
    data = TrainingData(text, settings, runtime, sequence_length=job.sequence_length)
    architecture = read_architecture(teacher.model)
    model = build(architecture, runtime, sequence_length=job.sequence_length)
    conversion.load_into(model, architecture, teacher.model)
    checkpoints = Checkpoints(context, job.fingerprint, runtime, keep=settings.keep_checkpoints)
    history = train(
        model,
        loss=LanguageModelLoss(),
        settings=settings,
        data=data,
        validate=lambda: validation_loss(model, validation, runtime, context, batch_size=data.micro_batch_size),
        check=lambda loss: check_sound(
            model, architecture, loss, whose="the teacher", what="its validation loss", runtime=runtime
        ),
        flops_per_token=training_flops(architecture, job.sequence_length),
        runtime=runtime,
        context=context,
        checkpoints=checkpoints,
    )
    result = _result(history, len(validation))
    if runtime.rank == 0:
        with context.store.draft("finetune", job.artifact_key) as draft:
            conversion.write(dict(model.named_parameters()), architecture, draft.path / "model", template=teacher.model)
            publish_curves(history, context.folder, draft.path)
            published = draft.publish(
                config=job.to_json(),
                inputs={"data": job.data, "teacher": job.teacher},
                result=result.to_json(),
                metrics={
                    **metrics_of(history, data.passes(settings.steps)),
                    "validationSequences": len(validation),
                    "precision": runtime.precision.value,
                },
            )
        result = measuring.settled(job, context, published, FinetuneResult)
    return result


def _measured(job: FinetuneJob, context: Context, runtime: Runtime, made: Artifact) -> FinetuneResult:
    """The result for weights that this step or one that measures otherwise has made: nothing is trained."""
    known = measuring.own(job, context, runtime, made, FinetuneResult)
    if known is not None:
        return known
    validation = measuring.validation_of(job, context)
    found = measuring.losses(job, context, runtime, {"teacher": job.teacher, "corrected": made.name}, validation)
    result = FinetuneResult(
        teacher_loss=found["teacher"],
        corrected_teacher_loss=found["corrected"],
        validation_sequences=len(validation),
        digest=made.digest,
        tokens_per_second=made.result(FinetuneResult).tokens_per_second,
    )
    if runtime.rank == 0:
        measuring.note(job, context, made, result)
    return result


def _result(history: "History", validation_sequences: int) -> FinetuneResult:
    losses = history.validation
    return FinetuneResult(
        teacher_loss=losses[0].loss,
        corrected_teacher_loss=losses[-1].loss,
        validation_sequences=validation_sequences,
        tokens_per_second=history.tokens_per_second,
    )
