"""What the phases that train say alike."""

from collections.abc import Iterator, Mapping
from typing import Any

from compression_pipeline.config import (
    DatasetConfig,
    DistillConfig,
    DistillJob,
    FinetuneJob,
    Phase,
    Precision,
    PrepareResult,
    TrainingConfig,
    TrainingResult,
    repetitions,
    seen_in_words,
)
from compression_pipeline.report import markdown, words
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.data import RunData

from .base import Spec

HYPERPARAMETERS = (
    ("Steps", "steps"),
    ("Global batch size (sequences)", "global_batch_size"),
    ("Peak learning rate", "learning_rate"),
    ("Final learning rate (cosine)", "min_learning_rate"),
    ("Warm-up steps", "warmup_steps"),
    ("Weight decay", "weight_decay"),
    ("Adam betas", "adam_betas"),
    ("Gradient clipping", "clip_gradient"),
    ("Seed", "seed"),
)

MOST_DOTS = 60
"""Points of a curve that are each marked; of more, only the line is drawn."""


def length_of(spec: Spec) -> int:
    """Tokens of a sequence."""
    default = DatasetConfig.model_fields["sequence_length"].default
    return (spec.get("dataset") or {}).get("sequenceLength", default)


def in_words(run: RunData, settings: Mapping[str, Any], precision: str | None) -> str:
    """A training by its settings in the spec, and the arithmetic that it used; steps of an extension are told apart."""
    fields, length, prepared = DistillConfig.model_fields, length_of(run.spec), run.teacher.prepared
    batch = settings.get("globalBatchSize", fields["global_batch_size"].default)
    steps = settings.get("steps", 0)
    rate = settings.get("learningRate")
    peak = f", learning rate {float(rate):g} at its peak" if rate is not None else ""
    seen = f"{words.count(steps * batch * length)} tokens"
    if prepared is not None:
        seen = seen_in_words(prepared.shares, sequence_length=length, sequences=steps * batch)
    used = f"; computed in {precision}" if precision else ""
    return f"{steps:,} steps of {batch:,} sequences ({seen}){peak}{used}"


def repeated(run: RunData, settings: Mapping[str, Any]) -> Iterator[str]:
    """A warning for each source that a training repeats too often."""
    if run.teacher.prepared is not None:
        batch = settings.get("globalBatchSize", DistillConfig.model_fields["global_batch_size"].default)
        size = {"sequence_length": length_of(run.spec), "sequences": settings.get("steps", 0) * batch}
        yield from (f"{sentence}." for sentence in repetitions(run.teacher.prepared.shares, **size))


def by_source(prepared: PrepareResult | None, result: TrainingResult | None) -> Iterator[tuple[str, str, str]]:
    """Validation losses over the text of each of several sources: its name, the losses in words, of which models.

    Names are those of this run: whoever made the artifacts may have called the same texts otherwise.
    """
    names = [one.source for one in prepared.resolved_sources] if prepared else []
    for number, one in enumerate(result.source_losses if result else ()):
        losses = {
            "teacher": one.teacher,
            "corrected teacher": one.corrected,
            "pruned student": one.pruned,
            "distilled student": one.distilled,
        }
        told = {whose: words.loss(loss) for whose, loss in losses.items() if loss is not None}
        yield names[number] if number < len(names) else one.source, " → ".join(told.values()), ", ".join(told)


def card_table(
    ancestry: Ancestry, phase: Phase, job: FinetuneJob | DistillJob, settings: TrainingConfig, *, more: int = 0
) -> str:
    """The settings of a training as a table of the card. `more`: steps beyond those of its settings."""
    values = {**settings.model_dump(), "adam_betas": f"{settings.adam_beta1}, {settings.adam_beta2}"}
    sequences = (settings.steps + more) * settings.global_batch_size
    seen = seen_in_words(ancestry.prepare.shares, sequence_length=job.sequence_length, sequences=sequences)
    used = ancestry.made[phase].artifact.manifest.metrics.get("precision", settings.precision)
    rows = [(label, str(values[field])) for label, field in HYPERPARAMETERS]
    rows += [("Arithmetic", Precision(used).words), ("Trained on", seen)]
    return markdown.table(("Setting", "Value"), rows)
