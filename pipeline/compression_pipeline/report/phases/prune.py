"""prune: what was measured, what was kept, and what was cut."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from compression_pipeline.config import (
    ENGINES,
    METHODS,
    AggregationConfig,
    Architecture,
    ImportanceConfig,
    PrunedHeads,
    aggregation_words,
    method_words,
    number_runs,
)
from compression_pipeline.config.targets import AXES
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.charts import (
    COLOURS,
    Area,
    Cell,
    Figures,
    Grid,
    Level,
    LineChart,
    Series,
    line_chart,
    ranked_area,
)
from compression_pipeline.report.data import RunData, StudentData
from compression_pipeline.report.importance import Axis, Importance

from .base import Fact, Panel, PhaseReport, Spec

MOST_HEAD_ROWS = 48

_FAVOURED = " They were chosen on the validation text, so validation losses favour this choice slightly."

NOTHING_LOST = ": no layer alone makes it worse, so all bars are equal"

RANKED = (
    ("hiddenSize", "hidden", "hidden channels"),
    ("ffnHiddenSize", "ffn", "feed-forward neurons"),
    ("attentionHeads", "heads", "attention heads"),
    ("layers", "depth", "layers"),
)
"""Fields of `prune` whose parts are ranked, the field of `prune.importance`, and what these parts are called."""


def _panels(run: RunData, student: StudentData, colour: int) -> Iterator[Panel | None]:
    found = student.importance or Importance()
    named = bool(_settings(run.spec, student.name).get("dropLayers"))
    return importance_panels(run.teacher.architecture, student.kept_layers, found, named=named)


def importance_panels(
    teacher: Architecture | None, kept_layers: Sequence[int], found: Importance, *, named: bool
) -> Iterator[Panel | None]:
    """A panel for every axis; None for what was not cut. `named`: the user said which layers go."""
    yield _layers(teacher, kept_layers, found, named=named) if teacher and kept_layers else None
    yield _blocks(found, teacher, kept_layers)
    yield _best_blocks(found)
    yield _steps(found)
    yield _heads(found)
    yield _hidden(found)
    yield _mean_axis("Feed-forward neurons", list(found.ffn.values()), "neurons a layer")


def _layers(teacher: Architecture, kept_layers: Sequence[int], found: Importance, *, named: bool) -> Grid:
    """One bar a layer of the teacher; `named`: by the user, and so not by what was measured."""
    heights, by = _logarithmic(found.layers), method_words(found.depth)
    kept = set(kept_layers)
    cells = [
        Cell(
            label=str(number),
            score=heights.get(number),
            kept=number in kept,
            hint=f"layer {number}: {'kept' if number in kept else 'dropped'}"
            + (f", {by} {found.layers[number]:.4f}" if number in found.layers else ""),
        )
        for number in range(1, teacher.layers + 1)
    ]
    meaning = f": {METHODS[found.depth].meaning}" if found.depth in METHODS and METHODS[found.depth].meaning else ""
    measured = f"{by} (log scale){meaning}; " if heights else f"{by}{NOTHING_LOST}; " if found.layers else ""
    which = "all" if len(kept) == teacher.layers else number_runs(kept_layers)
    chosen = "; the dropped ones are named in the manifest" if named else ""
    return Grid("Layers", f"{measured}kept: {which} of {teacher.layers}{chosen}", [("", cells)])


def _blocks(found: Importance, teacher: Architecture | None, kept_layers: Sequence[int]) -> LineChart | None:
    """The sweep: a line for each length of a block, the loss (or the score) without it over its first layer."""
    if not found.blocks:
        return None
    lines = [
        Series(_layers_of(length), points, colour % COLOURS, dots=True)
        for colour, (length, points) in enumerate(found.blocks.items())
    ]
    cut = set(range(1, teacher.layers + 1)) - set(kept_layers) if teacher and kept_layers else set[int]()
    told = [f"in {found.task}, not retrained" if found.task else "nats per token on held-out text, not retrained"]
    highest = _ceiling(found)
    if highest is not None and any(loss > highest for points in found.blocks.values() for _, loss in points):
        told.append("the worst are drawn at the upper edge")
    return line_chart(
        f"{_measured(found).capitalize()} without a block of layers",
        lines,
        note="; ".join([*told, f"dropped: {number_runs(cut)}"] if cut else told),
        x_label="first layer dropped",
        highest=highest,
        levels=[Level("teacher", found.whole)] if found.whole is not None else [],
    )


def _best_blocks(found: Importance) -> Figures | None:
    """The best block of each length, in words."""
    if not found.blocks:
        return None
    rows: list[tuple[str, str, str]] = []
    sign = -1 if found.higher_is_better else 1
    for length, points in found.blocks.items():
        first, loss = min(points, key=lambda point: (sign * point[1], -point[0]))  # as chosen
        layers = f"layer {first}" if length == 1 else f"layers {first} to {first + length - 1}"
        change = "" if found.whole is None else f", {loss - found.whole:+.4f} against the whole teacher"
        rows.append((_layers_of(length), f"{loss:.4f}", f"without {layers}{change}"))
    best = "highest" if found.higher_is_better else "lowest"
    return Figures("Best block of each length", f"the {best} {_measured(found)}, and without which layers", rows)


def _steps(found: Importance) -> Figures | None:
    """The cuts, where importance was measured again between them."""
    rows = [
        (
            f"Cut {number}",
            f"{step['parameters']:,} parameters",
            f"layers {number_runs(step['layers'])}; hidden {step['hiddenSize']:,}, FFN {step['ffnHiddenSize']:,}, "
            f"{step['attentionHeads']} heads",
        )
        for number, step in enumerate(found.steps, start=1)
    ]
    note = "importance was measured again before each; the panels show that of the first"
    return Figures("Cut by cut", note, rows) if rows else None


def _measured(found: Importance) -> str:
    return "score" if found.task else "loss"


def _layers_of(length: int) -> str:
    return "1 layer" if length == 1 else f"{length} layers"


def _ceiling(found: Importance) -> float | None:
    """Twice the rise of the dearest length's median. The first layers, without which no model is left, dwarf the rest.
    None where no such loss rises.
    """
    if found.whole is None or found.task:
        return None
    rise = max(median(loss for _, loss in points) - found.whole for points in found.blocks.values())
    return found.whole + 2 * rise if rise > 0 else None


def _logarithmic(scores: Mapping[int, float]) -> dict[int, float]:
    """Heights of bars on a logarithmic scale, the highest 1; the first layer's influence dwarfs all others'.

    Empty where no score is above 0.
    """
    positive = [score for score in scores.values() if score > 0]
    if not positive:
        return {}
    low, high = math.log(min(positive) / 2), math.log(max(positive))
    return {n: (math.log(score) - low) / (high - low) if score > 0 else 0.0 for n, score in scores.items()}


def _heads(found: Importance) -> Grid | None:
    """A row of heads for every layer, where heads were pruned."""
    if not any(len(axis.kept) < len(axis.scores) for axis in found.heads.values()):
        return None
    rows: list[tuple[str, Sequence[Cell]]] = []
    for layer, axis in list(found.heads.items())[:MOST_HEAD_ROWS]:
        highest, kept = max(axis.scores, default=0.0) or 1.0, set(axis.kept)
        cells = [
            Cell("", max(score, 0.0) / highest, i in kept, f"layer {layer}, head {i + 1}: {score:.4g}")
            for i, score in enumerate(axis.scores)
        ]
        rows.append((str(layer), cells))
    return Grid("Attention heads", "a row for every layer; the darker, the more important", rows)


def _hidden(found: Importance) -> Area | None:
    if found.hidden is None or len(found.hidden.kept) == len(found.hidden.scores):
        return None
    return _mean_axis("Hidden channels", [found.hidden], "channels")


def _mean_axis(title: str, axes: Sequence[Axis], unit: str) -> Area | None:
    """Ranked importance, a mean over layers (each scaled to its own sum); None where nothing was cut."""
    cut = [axis for axis in axes if 0 < len(axis.kept) < len(axis.scores) and sum(axis.scores) > 0]
    if not cut:
        return None
    totals = [sum(axis.scores) for axis in cut]
    ranked = [[s / total for s in sorted(axis.scores, reverse=True)] for axis, total in zip(cut, totals, strict=True)]
    scores = [sum(column) / len(ranked) for column in zip(*ranked, strict=False)]
    shares = [kept for axis in cut if (kept := axis.kept_share) is not None]
    held = f"{min(shares):.0%}" if max(shares) - min(shares) < 0.005 else f"{min(shares):.0%} to {max(shares):.0%}"
    note = f"ranked by importance; the kept ones hold {held.replace('%', ' %')} of it"
    return ranked_area(title, scores, len(cut[0].kept), unit, note)


def _facts(run: RunData) -> Iterator[Fact]:
    alone = len(run.students) == 1
    for student in run.students:
        if said := _pruning(_cut(_settings(run.spec, student.name), run.teacher.architecture, student), student):
            yield "Pruning" if alone else f"Pruning of {student.name}", said


def _settings(spec: Spec, student: str) -> Mapping[str, Any]:
    """What the spec says of a student's sizes."""
    return next((s.get("prune") or {} for s in spec.get("students") or [] if s.get("name") == student), {})


def _cut(settings: Mapping[str, Any], teacher: Architecture | None, student: StudentData) -> Mapping[str, Any]:
    """The settings with the sizes that a target led to."""
    made = student.architecture
    if not settings.get("target") or made is None or teacher is None:
        return settings
    sizes = ((axis.value, getattr(teacher, field), getattr(made, field)) for axis, field in AXES.items())
    return {**settings, **{name: size for name, has, size in sizes if size != has}}


def _pruning(settings: Mapping[str, Any], student: StudentData) -> str:
    """What chose the parts that were kept: what was measured, or the user."""
    told = settings.get("importance") or {}
    default = ImportanceConfig()
    ranked: dict[str, list[str]] = {}
    on_training_text = False
    for field, axis, name in RANKED:
        if settings.get(field):
            method = told.get(axis, getattr(default, axis))
            on_training_text |= not (method in METHODS and METHODS[method].sweeps)
            how = f" ({aggregation_words(told.get('aggregation'))})" if _aggregates(method) else ""
            ranked.setdefault(f"{method_words(method)}{how}", []).append(name)
    parts = [f"{', '.join(names)} ranked by {by}" for by, names in ranked.items()]
    if dropped := settings.get("dropLayers"):
        parts.append(f"layers {number_runs(sorted(set(dropped)))} dropped, as the manifest names them, not ranked")
    if settings.get("prunedHeads") == PrunedHeads.MERGE:
        parts.append("what pruned heads had is merged into kept ones")
    if on_training_text and student.calibration_samples:
        parts.append(f"importance measured on {student.calibration_samples:,} sequences of the training text")
    return "; ".join(parts)


def _aggregates(method: str) -> bool:
    return method in METHODS and METHODS[method].aggregates


def _card(ancestry: Ancestry) -> Iterator[str]:
    (job, pruned), whole = ancestry.prune, ancestry.prepare.teacher.layers
    kept = pruned.kept_layers
    layers = f"all {whole} layers" if len(kept) == whole else f"layers {number_runs(kept)} of {whole} (counted from 1)"
    importance, cuts = job.prune.importance, job.prune.iterations
    ranked = not job.prune.drop_layers and len(kept) < whole
    how = f" by {method_words(importance.depth)}" if ranked else ""
    yield (
        f"**Pruning.** {ENGINES[job.engine].prunes_with}; importance{_otherwise(importance)} from the activations of "
        f"{ancestry.calibration_samples:,} sequences of {job.sequence_length:,} tokens. "
        f"Kept: {layers}{how}; the other sizes as in the table above."
        + (f" It was cut in up to {cuts} steps, with importance measured again between them." if cuts > 1 else "")
        + (_FAVOURED if ranked and importance.depth in METHODS and METHODS[importance.depth].held_out else "")
        + (" Pruned attention heads are merged into kept ones." if job.prune.pruned_heads is PrunedHeads.MERGE else "")
    )


def _otherwise(importance: ImportanceConfig) -> str:
    """Which axes were ranked by another method than the default."""
    default = ImportanceConfig().by_axis()
    others = [f"{axis} by {method_words(name)}" for axis, name in importance.by_axis().items() if name != default[axis]]
    if importance.aggregation != AggregationConfig():
        others.append(aggregation_words(importance.aggregation.to_json()))
    return f" ({', '.join(others)})" if others else ""


REPORT = PhaseReport(panels=_panels, facts=_facts, card=_card)
