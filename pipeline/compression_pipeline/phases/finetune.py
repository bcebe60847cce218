"""Teacher correction: train the teacher for a while on the text that its students will learn from."""

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import FinetuneJob, FinetuneResult
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine, Training, start_engine
from compression_pipeline.engines.history import History, metrics_of, publish_curves
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.huggingface.writer import write_checkpoint
from compression_pipeline.phases import measuring
from compression_pipeline.text.batches import TrainingData, ValidationData


def run(job: FinetuneJob, context: Context) -> FinetuneResult:
    """Train the teacher and publish it as `finetune-<key>`: `model/`, `history.json`, `tensorboard/`.

    Raises:
        UserError: the text is too short, the batch does not divide among the ranks, the loss is not finite.
        Interrupted: told to stop; another attempt goes on from the checkpoint.
    """
    settings = job.finetune
    teacher = read_architecture(context.store.open(job.teacher).model)
    measuring.check_layout(job, {"the teacher's": teacher})
    with start_engine(
        job, context, precision=settings.precision, deterministic=settings.deterministic, seed=settings.seed
    ) as engine:
        made = measuring.made_before(job, context, engine, "finetune")
        return correct(job, context, engine) if made is None else _measured(job, context, engine, made)


def correct(job: FinetuneJob, context: Context, engine: Engine) -> FinetuneResult:
    """`run` on an engine that has started."""
    settings = job.finetune
    text, teacher = context.store.open(job.data).data, context.store.open(job.teacher)
    validation = measuring.validation_of(job, context)
    length, attention = job.sequence_length, job.document_attention
    data = TrainingData(text, settings, engine, sequence_length=length, attention=attention)
    architecture = read_architecture(teacher.model)
    model = measuring.loaded(engine, architecture, teacher.model, sequence_length=length)
    training = Training(
        fingerprint=job.fingerprint,
        settings=settings,
        architecture=architecture,
        data=data,
        validation=validation,
        check=lambda loss, state: measuring.check_loss(engine, state, architecture, loss, whose="the teacher"),
    )
    history = engine.train(model, training)
    result = _result(history, validation)
    weights = engine.state(model)
    if engine.rank == 0:
        with context.store.draft("finetune", job.artifact_key) as draft:
            write_checkpoint(
                engine.tensors(weights, architecture),
                architecture,
                draft.path / "model",
                template=teacher.model,
                dtype=measuring.torch_type(engine.precision),
            )
            publish_curves(history, context.folder, draft.path)
            published = draft.publish(
                config=job.to_json(),
                inputs={"data": job.data, "teacher": job.teacher},
                result=result.to_json(),
                metrics={
                    **metrics_of(history, data.passes(settings.steps)),
                    "validationSequences": len(validation),
                    "precision": engine.precision.value,
                },
            )
        result = measuring.published_result(job, context, published, FinetuneResult)
    return result


def _measured(job: FinetuneJob, context: Context, engine: Engine, made: Artifact) -> FinetuneResult:
    """The result for weights that this step or one that measures otherwise has made: nothing is trained."""
    known = measuring.own(job, context, engine, made, FinetuneResult)
    if known is not None:
        return known
    validation = measuring.validation_of(job, context)
    found = measuring.losses(job, context, engine, {"teacher": job.teacher, "corrected": made.name}, validation)
    result = FinetuneResult(
        teacher_loss=found["teacher"].loss,
        corrected_teacher_loss=found["corrected"].loss,
        validation_sequences=len(validation),
        source_losses=measuring.by_source(validation, {role: one.by_source for role, one in found.items()}),
        digest=made.digest,
        tokens_per_second=made.result(FinetuneResult).tokens_per_second,
    )
    if engine.rank == 0:
        measuring.note(job, context, made, result)
    return result


def _result(history: History, validation: ValidationData) -> FinetuneResult:
    losses = history.validation
    return FinetuneResult(
        teacher_loss=losses[0].loss,
        corrected_teacher_loss=losses[-1].loss,
        validation_sequences=len(validation),
        source_losses=measuring.by_source(
            validation, {"teacher": losses[0].by_source, "corrected": losses[-1].by_source}
        ),
        tokens_per_second=history.tokens_per_second,
    )
