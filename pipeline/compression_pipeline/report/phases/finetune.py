"""finetune: the teacher after its correction."""

from collections.abc import Iterator
from typing import Any

from compression_pipeline.config import FinetuneConfig, FinetuneResult, Phase
from compression_pipeline.report import words
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.charts import LineChart, Series, line_chart
from compression_pipeline.report.data import Measured, RunData

from . import training
from .base import Fact, PhaseReport, Row, Spec


def _rows(run: RunData) -> Iterator[Row]:
    teacher = run.teacher
    if teacher.corrected_loss is None:
        return
    yield Row(
        "Corrected teacher",
        {
            "Parameters": words.count(teacher.parameters),
            "Of teacher": "100 %",
            "Loss": words.loss(teacher.corrected_loss),
            "Perplexity": words.perplexity(teacher.corrected_loss),
            "Training tokens/s": words.speed(teacher.tokens_per_second),
        },
    )


def _charts(run: RunData) -> Iterator[LineChart | None]:
    history = run.teacher.history
    yield line_chart(
        "Teacher correction",
        [
            Series("training", history.loss, 0, faint=True),
            Series("validation", history.validation, 0, dots=len(history.validation) <= training.MOST_DOTS),
        ],
        note="loss of the teacher on the students' text, nats per token",
    )


def _facts(run: RunData) -> Iterator[Fact]:
    settings = run.spec.get("finetune")
    none = "none: students learn from the teacher as it came"
    yield "Teacher correction", training.in_words(run, settings, run.teacher.precision) if settings else none

    result = run.results.get(Phase.FINETUNE)
    if isinstance(result, FinetuneResult) and (rows := [*training.by_source(run.teacher.prepared, result)]):
        yield "Loss by source", "; ".join(f"{source}: {losses} ({whose})" for source, losses, whose in rows)


def _seeds(spec: Spec) -> Iterator[tuple[str, Any]]:
    if spec.get("finetune"):
        yield "finetune", spec["finetune"].get("seed", FinetuneConfig.model_fields["seed"].default)


def _warnings(run: RunData) -> Iterator[str]:
    teacher = run.teacher
    if teacher.loss is not None and teacher.corrected_loss is not None and teacher.corrected_loss > teacher.loss:
        yield (
            f"Teacher correction made the teacher worse on the validation text ({words.loss(teacher.loss)} to "
            f"{words.loss(teacher.corrected_loss)}): lower finetune.learningRate or finetune.steps."
        )


def _card(ancestry: Ancestry) -> Iterator[str]:
    if ancestry.finetuned is not None:
        job = ancestry.finetuned[0]
        yield f"**Teacher correction.** The teacher was trained on the data, sequences of {job.sequence_length} tokens."
        yield training.card_table(ancestry, Phase.FINETUNE, job, job.finetune)


def _measured(result: FinetuneResult) -> Measured:
    return Measured(teacher=result.teacher_loss, corrected_teacher=result.corrected_teacher_loss)


REPORT = PhaseReport(
    rows=_rows, charts=_charts, facts=_facts, seeds=_seeds, warnings=_warnings, losses=_measured, card=_card
)
