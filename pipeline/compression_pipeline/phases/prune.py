"""prune: measure what matters, cut the student out of the teacher, check what came out."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from compression_pipeline.config import (
    Architecture,
    Axis,
    Phase,
    Precision,
    PruneConfig,
    PruneJob,
    PruneResult,
    SearchResult,
    student_architecture,
    student_faults,
)
from compression_pipeline.config.base import indivisible
from compression_pipeline.context import Context
from compression_pipeline.engines import Model, start_engine
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.files import inspect
from compression_pipeline.huggingface.writer import save_tensors, write_checkpoint
from compression_pipeline.importance import (
    BLOCKS,
    Choice,
    Scores,
    block_score,
    choose,
    higher_is_better,
)
from compression_pipeline.phases import measuring, scores
from compression_pipeline.phases.arithmetic import planned_precision
from compression_pipeline.phases.cutting import Cut, cutting_steps
from compression_pipeline.phases.drawing import try_to_draw
from compression_pipeline.phases.ranking import (
    Calibration,
    check_aggregation,
    check_task,
    measure_importance,
    stored_type,
)
from compression_pipeline.report import IMPORTANCE


def run(job: PruneJob, context: Context) -> PruneResult:
    """Make the student `job.prune` of the teacher and publish it.

    The artifact: `model/`, `importance.safetensors` (scores by axis), `chosen.json` (what was kept), and
    `importance.html`, which shows both.

    Raises UserError, before anything is loaded, where the teacher can't give such a student, or where the GPU can't be
    used whose arithmetic the step's key counts on.
    """
    data, teacher_artifact = context.store.open(job.data), context.store.open(job.teacher)
    files = inspect(teacher_artifact.model)
    teacher = files.architecture
    check_sizes(teacher, job.prune)
    prune = with_sizes(job, context, teacher)
    student = student_architecture(teacher, prune)
    dtype = stored_type(files)
    # Weights are only moved, never rounded: float32 arithmetic unless they are bfloat16 already.
    planned = planned_precision(Phase.PRUNE)
    precision = planned if dtype is torch.bfloat16 else Precision.FP32
    check_task(job)
    with start_engine(job, context, precision=precision) as engine:
        sequences = Calibration(
            data.data, engine, job.sequence_length, prune.calibration_samples, attention=job.document_attention
        )
        check_aggregation(sequences, prune)
        model = measuring.loaded(engine, teacher, teacher_artifact.model, sequence_length=job.sequence_length)

        def measure(model: Model, of: Architecture, cut: PruneConfig, step: int, axes: Collection[Axis]) -> Scores:
            told = job.model_copy(update={"prune": cut})
            return measure_importance(told, context, engine, model, of, sequences, axes, step=step)

        first, *later = cutting_steps(teacher, prune)
        found = scores.find_or_measure(
            job.model_copy(update={"prune": first}),
            context,
            engine,
            teacher,
            lambda axes: measure(model, teacher, first, 1, axes),
        )
        choice, shape = choose(found.scores, teacher, first), student_architecture(teacher, first)
        model = engine.cut(model, teacher, shape, choice, divisor=prune.divisor)
        cuts = [Cut(shape, found.scores, choice.layers)]
        for step, cut in enumerate(later, start=2):
            cut_before, model = model, engine.build(shape, sequence_length=job.sequence_length)
            engine.fill(model, engine.state(cut_before), measuring.torch_type(engine.precision))
            del cut_before
            engine.free()
            again = measure(model, shape, cut, step, tuple(Axis))
            chosen, after = choose(again, shape, cut), student_architecture(shape, cut)
            model = engine.cut(model, shape, after, chosen, divisor=prune.divisor)
            choice, shape = choice.then(chosen), after
            cuts.append(Cut(shape, again, choice.layers))
        result = PruneResult(
            student=student,
            parameters=student.parameters,
            compression_ratio=student.parameters / teacher.parameters,
            kept_layers=[layer + 1 for layer in choice.layers],
            scores_reused=found.seconds is None,
            block_score=block_score(found.scores, choice.layers) if scores.dropped(prune, teacher) else None,
        )
        if engine.rank == 0:
            metrics = {
                "calibrationSamples": sequences.count,
                "calibrationTokens": sequences.count * job.sequence_length,
                "scoresReused": list(found.reused),
                "precision": engine.precision.value,
            }
            if found.seconds is not None:
                metrics["importanceSeconds"] = found.seconds
            if planned is not Precision.AUTO:
                metrics["plannedPrecision"] = planned.value
            with context.store.draft("prune", job.fingerprint) as draft:
                write_checkpoint(
                    engine.tensors(engine.state(model), student),
                    student,
                    draft.path / "model",
                    template=teacher_artifact.model,
                    dtype=dtype,
                )
                write_scores(cuts, choice, job, draft.path)
                draw_importance(draft.path, teacher, prune, result.kept_layers, context)
                published = draft.publish(
                    config=job.to_json(),
                    inputs={
                        "data": job.data,
                        "teacher": job.teacher,
                        **({"searched": job.searched} if job.searched else {}),
                        **scores.tasks_of(job),
                        **found.inputs,
                    },
                    result=result.to_json(),
                    metrics=metrics,
                )
            result = published.result(PruneResult)  # another job's, where that was first
    return result


def with_sizes(job: PruneJob, context: Context, teacher: Architecture) -> PruneConfig:
    """The settings with sizes in place of a target: those that a search has found the best, or that rank first."""
    if job.prune.target is None:
        return job.prune
    if job.searched is None:
        shape = student_architecture(teacher, job.prune)
    else:
        shape = context.store.open(job.searched).result(SearchResult).candidates[0].shape.architecture(teacher)
    return job.prune.of_shape(teacher, shape)


def check_sizes(teacher: Architecture, prune: PruneConfig) -> None:
    """Everything that can be wrong with the student's sizes, before anything is loaded.

    Raises UserError with all faults.
    """
    faults = [f"{field}: {sentence}" for field, sentence in student_faults(teacher, prune)]
    for field, wanted, has in (
        ("hiddenSize", prune.hidden_size, teacher.hidden_size),
        ("ffnHiddenSize", prune.ffn_hidden_size, teacher.ffn_hidden_size),
    ):
        if wanted is not None and wanted != has and wanted % prune.divisor:
            said = indivisible("%d is not divisible by %d (divisor)", (wanted, prune.divisor), wanted, prune.divisor)
            faults.append(f"{field}: {said}")
    if faults:
        raise UserError("; ".join(f"prune.{fault}" for fault in faults))


def write_scores(cuts: Sequence[Cut], choice: Choice, job: PruneJob, folder: Path) -> None:
    """Scores, choice and methods, beside the model; and what was measured of each block of layers (from 1).

    Scores of the teacher as it was are importance.safetensors; those of the second cut importance-2.safetensors.
    """
    scores, prune = cuts[0].scores, job.prune
    for step, cut in enumerate(cuts, start=1):
        save_tensors(cut.scores, folder / ("importance.safetensors" if step == 1 else f"importance-{step}.safetensors"))
    methods = {axis.value: name for axis, name in prune.importance.by_axis().items()}
    told: dict[str, Any] = {"methods": methods, "aggregation": prune.importance.aggregation.to_json()}
    if BLOCKS in scores:
        rows = scores[BLOCKS].tolist()
        told["blocks"] = [{"first": int(first), "layers": int(n), "value": value} for first, n, value in rows]
        told["higherIsBetter"] = higher_is_better(scores)
    if job.evaluate is not None:
        told["task"] = job.evaluate.tasks[0].name
    if len(cuts) > 1:
        told["steps"] = [cut.to_json() for cut in cuts]
    (folder / "chosen.json").write_text(json.dumps({**choice.to_json(), **told}) + "\n")


def draw_importance(
    folder: Path, teacher: Architecture, prune: PruneConfig, kept_layers: Sequence[int], context: Context
) -> None:
    """Draw the page that shows the scores and the choice, which are written in `folder` by now."""

    def write() -> None:
        from compression_pipeline.report.write import write_importance

        write_importance(folder, teacher, prune, kept_layers)

    page = folder / IMPORTANCE
    try_to_draw(f"the page {IMPORTANCE}", write, page, context, safe="the student and its scores are whole")
