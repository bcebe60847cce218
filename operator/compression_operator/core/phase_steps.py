"""What the control plane knows of each phase: when it has steps, what they read, and which figures they report.

One entry per phase, beside its entry in the pipeline's `PHASES`. Pure.
"""

from collections.abc import Callable, Mapping

from compression_operator.api.run import SOURCES_ANNOTATION, TASK_SOURCES_ANNOTATION
from compression_operator.api.spec import CompressionRunSpec, Student
from compression_operator.api.status import Evaluation
from compression_pipeline.config import (
    DEFAULT_ENGINE,
    DocumentAttention,
    EvaluateConfig,
    ExportDtype,
    GenerationConfig,
    LogitsConfig,
    Phase,
    Precision,
    TeacherConfig,
    TrainingConfig,
)

from .recording import (
    derive_artifact,
    derive_exported_loss,
    derive_teacher_losses,
    forget_correction,
    kept_layers_in_words,
    record_correction,
    record_prepared,
    record_tasks,
    recorder_of_scores,
    validation_losses,
)
from .step_spec import Asked, Configuration, Discovery, PhaseSteps

TEXT_LIMIT = 1000
"""Characters of a student's sample, and of its losses in words, in the status."""


def _teachers(spec: CompressionRunSpec) -> dict[str, Phase]:
    """What is read by all that comes after the teacher is ready."""
    return {"data": Phase.PREPARE, "teacher": Phase.FINETUNE if spec.finetune else Phase.PREPARE}


def _prepared(spec: CompressionRunSpec, student: Student | None, precision: Precision) -> Configuration:
    # Without the secret: it opens the teacher and does not change it.
    teacher = TeacherConfig.model_validate(spec.teacher.model_dump(include=set(TeacherConfig.model_fields)))
    return {"teacher": teacher, "dataset": spec.dataset}


def _finetuned(spec: CompressionRunSpec, student: Student | None, precision: Precision) -> Configuration:
    return {
        "finetune": _settled(spec.finetune, precision),
        "validation": spec.validation,
        "sequence_length": spec.dataset.sequence_length,
        "engine": _engine(spec),
        "document_attention": _attention(spec),
    }


def _searched_shape(spec: CompressionRunSpec, student: Student | None) -> dict[str, Phase]:
    return {"searched": Phase.SEARCH} if student and student.prune.searches else {}


def _searched(spec: CompressionRunSpec, student: Student | None, precision: Precision) -> Configuration:
    distill, target = (student and student.distill) or spec.distill, student and student.prune.target
    short = distill.shortened(target.distill_steps) if distill and target and target.distill_steps else None
    # Candidates are cut in one shot, whatever the iterations of the prune that comes after.
    own = {
        "prune": student and student.prune.model_copy(update={"iterations": 1}),
        "validation": spec.validation,
        "ranked_by": spec.rank_task(student),
        **(_timed(spec) if target and target.tokens_per_second is not None else {}),
    }
    return {**_pruned(spec, student, precision), **own, "distill": _settled(short, precision)}


def _timed(spec: CompressionRunSpec) -> Configuration:
    """How shapes are timed: as evaluate will time the student."""
    settings = spec.evaluate.generation if spec.evaluate else None
    return {"generation": settings or GenerationConfig(), "dtype": spec.export.dtype}


def _pruned(spec: CompressionRunSpec, student: Student | None, precision: Precision) -> Configuration:
    return {
        "evaluate": spec.depth_task(student),
        "prune": student and student.prune.shaping,
        "sequence_length": spec.dataset.sequence_length,
        "engine": _engine(spec),
        "document_attention": _attention(spec),
    }


def _tasks(asked: EvaluateConfig | None) -> dict[str, Phase]:
    """What is read to ask a model on the way."""
    return {"tasks": Phase.TASKS} if asked else {}


def _distilled(spec: CompressionRunSpec, student: Student | None, precision: Precision) -> Configuration:
    accept = (student and student.accept) or spec.accept
    distill = (student and student.distill) or spec.distill
    scoring = spec.watched_tasks(student)
    return {
        "distill": _settled(distill, precision),
        "scoring": scoring,
        "dtype": spec.export.dtype if scoring or (distill and distill.export_every is not None) else None,
        "accept": accept and accept.shaping,
        "validation": spec.validation,
        "sequence_length": spec.dataset.sequence_length,
        "engine": _engine(spec),
        "document_attention": _attention(spec),
    }


def _reads_logits(spec: CompressionRunSpec, student: Student | None) -> dict[str, Phase]:
    distill = (student and student.distill) or spec.distill
    return {"logits": Phase.LOGITS} if distill and distill.cached else {}


def _written_logits(spec: CompressionRunSpec, student: Student | None, precision: Precision) -> Configuration:
    distill, accept = (student and student.distill) or spec.distill, (student and student.accept) or spec.accept
    settled = distill.precision if distill and distill.precision is not Precision.AUTO else precision
    return {
        "logits": distill and LogitsConfig.of(distill, accept).model_copy(update={"precision": settled}),
        "validation": spec.validation,
        "sequence_length": spec.dataset.sequence_length,
        "engine": _engine(spec),
        "document_attention": _attention(spec),
    }


def _only_watches(configuration: Configuration) -> frozenset[str]:
    distill = configuration["distill"]
    return frozenset() if distill and distill.best_task else frozenset({"tasks", "scoring", "dtype"})


def _asks(*fields: str) -> Callable[[Configuration], Asked]:
    """The tasks of these fields of the job."""
    return lambda configuration: {
        field: configuration[field].by_content for field in fields if configuration[field] is not None
    }


def _asks_for_the_best(configuration: Configuration) -> Asked:
    """Of the tasks that watch a distillation the one that chooses the weights."""
    distill, scoring = configuration["distill"], configuration["scoring"]
    if not distill or not distill.best_task or not scoring:
        return {}
    best = [task for task in scoring.tasks if task.name == distill.best_task]
    return {"scoring": scoring.model_copy(update={"tasks": best}).by_content}


def _asked(spec: CompressionRunSpec, student: Student | None, precision: Precision) -> Configuration:
    # Of how models are measured it needs the tasks alone.
    return {"evaluate": spec.evaluate and EvaluateConfig(tasks=spec.evaluate.tasks)}


def _evaluated(spec: CompressionRunSpec, student: Student | None, precision: Precision) -> Configuration:
    # A student is what export will write: its weights are rounded. The teacher is what it was taught by.
    rounded = {"dtype": spec.export.dtype} if student else {}
    return {"evaluate": spec.evaluate, **rounded}


def _computed_in(configuration: Configuration, precision: Precision) -> str:
    # A GPU scores a student in the type of its export; bfloat16 has the key of when all were scored in that.
    dtype = configuration["dtype"]
    return dtype if precision is Precision.BF16 and dtype is not ExportDtype.BFLOAT16 else precision


def _is_evaluated(spec: CompressionRunSpec) -> bool:
    return spec.evaluate is not None


def _has_tasks(spec: CompressionRunSpec) -> bool:
    return spec.evaluate is not None and bool(spec.evaluate.tasks)


def _model(phase: Phase) -> Callable[[CompressionRunSpec], Mapping[str, Phase]]:
    """What is read to evaluate the model that the phase makes."""
    return lambda spec: {"model": phase, **({"tasks": Phase.TASKS} if _has_tasks(spec) else {})}


def _students(spec: CompressionRunSpec) -> dict[str, Phase]:
    """What is read to hand out a student."""
    return {**_teachers(spec), "pruned": Phase.PRUNE, "distilled": Phase.DISTILL}


def _scores(spec: CompressionRunSpec) -> dict[str, Phase]:
    """What tells of the scores of a student and of its teachers."""
    corrected = {"baseline_corrected": Phase.BASELINE_CORRECTED} if spec.finetune else {}
    return {"baseline": Phase.BASELINE, **corrected, "evaluated": Phase.EVALUATE}


def _chosen_by_loss(configuration: Configuration) -> bool:
    return configuration["accept"] is not None or bool(configuration["distill"] and configuration["distill"].keep_best)


def _engine(spec: CompressionRunSpec) -> str | None:
    """None if it is the default: keys are those of before there was a choice."""
    return spec.engine if spec.engine != DEFAULT_ENGINE else None


def _attention(spec: CompressionRunSpec) -> str | None:
    """None if it is the default: keys are those of before there was a choice."""
    attention = spec.dataset.document_attention
    return attention if attention is not DocumentAttention.SHARED else None


def _settled(training: TrainingConfig | None, precision: Precision) -> TrainingConfig | None:
    """The settings of a training with the arithmetic that it will use: what is trained in another is another model."""
    if training is None or training.precision is not Precision.AUTO:
        return training
    return training.model_copy(update={"precision": precision})


def _baseline_steps(phase: Phase, of: Phase, field: str) -> PhaseSteps:
    keep = recorder_of_scores(field)
    return PhaseSteps(
        phase,
        inputs=_model(of),
        configuration=_evaluated,
        wanted=lambda spec: _is_evaluated(spec) and (of is not Phase.FINETUNE or spec.finetune is not None),
        depends_on_device=True,
        record=keep,
        forget=lambda status: keep(status, None),
    )


STEPS: Mapping[Phase, PhaseSteps] = {
    steps.phase: steps
    for steps in (
        PhaseSteps(
            Phase.PREPARE,
            inputs=lambda spec: {},
            configuration=_prepared,
            files=SOURCES_ANNOTATION,
            record=record_prepared,
            discovery=Discovery(
                read=lambda status: status.resolved,
                forget=lambda status: status.model_copy(update={"resolved": None}),
                key=lambda found: found.key,
            ),
        ),
        PhaseSteps(
            Phase.TASKS,
            inputs=lambda spec: {},
            configuration=_asked,
            files=TASK_SOURCES_ANNOTATION,
            wanted=_has_tasks,
            record=record_tasks,
            discovery=Discovery(
                read=lambda status: status.tasks,
                forget=lambda status: status.model_copy(update={"tasks": None}),
                key=lambda found: found.key,
                parts=lambda found: found.digests,
            ),
        ),
        PhaseSteps(
            Phase.FINETUNE,
            inputs=lambda spec: {"data": Phase.PREPARE, "teacher": Phase.PREPARE},
            configuration=_finetuned,
            wanted=lambda spec: spec.finetune is not None,
            record=record_correction,
            forget=forget_correction,
            derive=derive_teacher_losses,
        ),
        PhaseSteps(
            Phase.SEARCH,
            inputs=_teachers,
            of_student=lambda spec, student: _tasks(spec.depth_task(student) or spec.rank_task(student)),
            configuration=_searched,
            wanted=lambda spec: any(student.prune.searches for student in spec.students),
            students=lambda spec, discovered: [student for student in spec.students if student.prune.searches],
            measures_choose=lambda configuration: True,
            asks=_asks("evaluate", "ranked_by"),
            depends_on_device=True,
            finds_shape=True,
            student_figures={"candidates": lambda result, step: result.candidates},
        ),
        PhaseSteps(
            Phase.PRUNE,
            inputs=_teachers,
            of_student=lambda spec, student: {**_tasks(spec.depth_task(student)), **_searched_shape(spec, student)},
            configuration=_pruned,
            asks=_asks("evaluate"),
            # Importance measured in another arithmetic may choose another student.
            depends_on_device=True,
            student_figures={
                "parameters": lambda result, step: result.parameters,
                "compression_ratio": lambda result, step: result.compression_ratio,
                "scores_reused": lambda result, step: result.scores_reused,
                "kept_layers": kept_layers_in_words,
                "block_score": lambda result, step: result.block_score,
            },
        ),
        PhaseSteps(
            Phase.LOGITS,
            inputs=_teachers,
            configuration=_written_logits,
            wanted=lambda spec: any(_reads_logits(spec, student) for student in spec.students),
            students=lambda spec, discovered: [one for one in spec.students if _reads_logits(spec, one)],
        ),
        PhaseSteps(
            Phase.DISTILL,
            inputs=lambda spec: {**_teachers(spec), "pruned": Phase.PRUNE},
            of_student=lambda spec, student: {
                **_tasks(spec.watched_tasks(student)),
                **_reads_logits(spec, student),
            },
            configuration=_distilled,
            watches=_only_watches,
            asks=_asks_for_the_best,
            measures_choose=_chosen_by_loss,
            student_figures={
                "validation_loss": validation_losses,
                "losses": lambda result, step: result.losses and result.losses[:TEXT_LIMIT],
                "tokens_per_second": lambda result, step: result.tokens_per_second,
                "best_step": lambda result, step: result.best_step,
                "best_score": lambda result, step: result.best_score,
                "extended_steps": lambda result, step: result.extended_steps,
            },
        ),
        PhaseSteps(
            Phase.EXPORT,
            inputs=_students,
            of_student=_searched_shape,
            configuration=lambda spec, student, precision: {"export": spec.export},
            student_figures={
                "artifact": lambda result, step: step.artifact,
                "sample": lambda result, step: result.sample[:TEXT_LIMIT],
                "dtype": lambda result, step: result.dtype,
            },
            derive=derive_exported_loss,
        ),
        _baseline_steps(Phase.BASELINE, Phase.PREPARE, "evaluation"),
        _baseline_steps(Phase.BASELINE_CORRECTED, Phase.FINETUNE, "corrected_evaluation"),
        PhaseSteps(
            Phase.EVALUATE,
            inputs=_model(Phase.DISTILL),
            configuration=_evaluated,
            wanted=_is_evaluated,
            depends_on_device=True,
            arithmetic=_computed_in,
            student_figures={
                "evaluation": lambda result, step: Evaluation(tasks=result.tasks, generation=result.generation)
            },
        ),
        PhaseSteps(
            Phase.REPORT,
            inputs=lambda spec: {**_students(spec), "exported": Phase.EXPORT, **_scores(spec)},
            of_student=_searched_shape,
            configuration=lambda spec, student, precision: {},
            # What a student scored is worth telling without what its teachers did.
            spares=frozenset({"baseline", "baseline_corrected"}),
            wanted=_is_evaluated,
            derive=derive_artifact,
        ),
    )
}
"""The steps of every phase. The plan follows the order of `Phase`."""
