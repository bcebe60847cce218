"""What was done, in words: a run's settings and what prepare found."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from compression_pipeline.config import (
    PACKING,
    ConfigModel,
    DatasetConfig,
    DistillConfig,
    FinetuneConfig,
    ImportanceConfig,
    losses_in_words,
    method_words,
    number_runs,
    passes,
)

from . import words
from .data import RunData, StudentData

RANKED = (
    ("hiddenSize", "hidden", "hidden channels"),
    ("ffnHiddenSize", "ffn", "feed-forward neurons"),
    ("attentionHeads", "heads", "attention heads"),
    ("layers", "depth", "layers"),
)
"""Fields of `prune` whose parts are ranked, the field of `prune.importance`, and what these parts are called."""

SEEDED: Mapping[str, type[ConfigModel]] = {"dataset": DatasetConfig, "finetune": FinetuneConfig}
"""Parts of a spec that have a seed, which holds for every student."""


def subtitle(run: RunData) -> str:
    teacher = str((run.spec.get("teacher") or {}).get("model", "the teacher"))
    source = str((run.spec.get("dataset") or {}).get("source", "the dataset"))
    number = len(run.students)
    return f"{teacher} → {number} student{'' if number == 1 else 's'}, on {source}"


def facts(run: RunData) -> list[tuple[str, str]]:
    """What was done, as pairs of a name and a sentence."""
    spec, prepared = run.spec, run.teacher.prepared
    length = (spec.get("dataset") or {}).get("sequenceLength", DatasetConfig.model_fields["sequence_length"].default)
    found: list[tuple[str, str]] = []
    if prepared is not None:
        shape = prepared.teacher
        found.append(
            (
                "Teacher",
                f"{shape.family.value}, {words.count(prepared.teacher_parameters)} parameters: {shape.layers} layers, "
                f"hidden {shape.hidden_size:,}, feed-forward {shape.ffn_hidden_size:,}, "
                f"{shape.attention_heads} heads in {shape.query_groups} groups, vocabulary {shape.vocabulary_size:,}",
            )
        )
        found.append(
            (
                "Text",
                f"{prepared.documents:,} documents: {prepared.train_tokens:,} tokens to train on, "
                f"{prepared.validation_tokens:,} held out; sequences of {length:,} tokens. {PACKING}",
            )
        )
    correction = spec.get("finetune")
    none = "none: students learn from the teacher as it came"
    tokens = prepared.train_tokens if prepared else None
    corrected = _training(correction, length, tokens, run.teacher.precision) if correction else none
    found.append(("Teacher correction", corrected))
    alone = len(run.students) == 1
    for student in run.students:
        if said := _pruning(pruning_settings(spec, student.name), student):
            found.append(("Pruning" if alone else f"Pruning of {student.name}", said))
    for whose, settings in _distillations(spec):
        used = {student.precision for student in run.students if whose in ("", f" of {student.name}")}
        said = _training(settings, length, tokens, used.pop() if len(used) == 1 else None)
        found.append((f"Distillation{whose}", f"{said}. Loss: {_losses(settings)}"))
    return found


def pruning_settings(spec: Mapping[str, Any], student: str) -> Mapping[str, Any]:
    """What the spec says of a student's sizes."""
    return next((s.get("prune") or {} for s in spec.get("students") or [] if s.get("name") == student), {})


def _pruning(settings: Mapping[str, Any], student: StudentData) -> str:
    """What chose the parts that were kept: what was measured, or the user."""
    told = settings.get("importance") or {}
    default = ImportanceConfig()
    ranked: dict[str, list[str]] = {}
    for field, axis, name in RANKED:
        if settings.get(field):
            ranked.setdefault(method_words(told.get(axis, getattr(default, axis))), []).append(name)
    parts = [f"{', '.join(names)} ranked by {by}" for by, names in ranked.items()]
    if dropped := settings.get("dropLayers"):
        parts.append(f"layers {number_runs(sorted(set(dropped)))} dropped, as the manifest names them, not ranked")
    if parts and student.calibration_samples:
        parts.append(f"importance measured on {student.calibration_samples:,} sequences of the training text")
    return "; ".join(parts)


def _training(settings: Mapping[str, Any], length: int, text_tokens: int | None, precision: str | None) -> str:
    fields = DistillConfig.model_fields
    batch = settings.get("globalBatchSize", fields["global_batch_size"].default)
    steps = settings.get("steps", 0)
    rate = settings.get("learningRate")
    peak = f", learning rate {float(rate):g} at its peak" if rate is not None else ""
    seen = f"{words.count(steps * batch * length)} tokens"
    if text_tokens is not None:
        seen = str(passes(text_tokens=text_tokens, sequence_length=length, sequences=steps * batch))
    used = f"; computed in {precision}" if precision else ""
    return f"{steps:,} steps of {batch:,} sequences ({seen}){peak}{used}"


def _losses(settings: Mapping[str, Any]) -> str:
    """What students were trained to match, of a spec that an older or a newer version may have written."""
    given = {"losses": settings["losses"]} if "losses" in settings else {}
    try:
        return losses_in_words(DistillConfig.model_validate({"steps": 1, "warmupSteps": 0, **given}).losses)
    except ValidationError:
        return ", ".join(str(loss.get("type")) for loss in settings["losses"])


def _distillations(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What students learn by, and whose it is: a student's own holds in place of the run's, which may be nobody's."""
    students = spec.get("students") or []
    if spec.get("distill") and not all(student.get("distill") for student in students):
        yield "", spec["distill"]
    for student in students:
        if student.get("distill"):
            yield f" of {student['name']}", student["distill"]


def seeds(spec: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Every seed that the results rest on."""
    given = [(name, spec[name], model) for name, model in SEEDED.items() if spec.get(name)]
    given += [(f"distill{whose}", settings, DistillConfig) for whose, settings in _distillations(spec)]
    return [(name, settings.get("seed", model.model_fields["seed"].default)) for name, settings, model in given]
