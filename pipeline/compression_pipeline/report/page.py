"""The report's page: figures and charts laid out for the template. Everything it writes is escaped by jinja2."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from compression_pipeline.config import METHODS, Architecture, method_words, number_runs

from . import facts, words
from .charts import Area, Cell, Grid, Level, LineChart, Series, line_chart, ranked_area
from .data import RunData, StudentData
from .importance import Axis, Importance

COLOURS = 6
"""Entries of report.css's palette; more students begin anew."""

MOST_HEAD_ROWS = 48


@dataclass(frozen=True)
class Row:
    """One line of the table of models."""

    name: str
    colour: int | None
    cells: Sequence[str]
    strong: int | None = None


@dataclass(frozen=True)
class StudentView:
    """Everything the template shows of one student."""

    name: str
    colour: int
    verdict: words.Verdict
    sizes: Sequence[tuple[str, str, str]]
    charts: Sequence[LineChart]
    grids: Sequence[Grid]
    areas: Sequence[Area]
    sample: str | None
    exported: bool
    load: str | None


@dataclass(frozen=True)
class StepView:
    """One step and its bar in the run's time, in per cent."""

    name: str
    state: str
    start: float | None
    width: float
    time: str
    note: str
    artifact: str


def render(run: RunData, resource_yaml: str) -> str:
    """The page as HTML, everything inline. `resource_yaml` is the manifest to run again."""
    environment = Environment(
        loader=PackageLoader("compression_pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    students = [_student(run, student, number % COLOURS) for number, student in enumerate(run.students)]
    return environment.get_template("report.html.j2").render(
        run=run,
        lead=[facts.subtitle(run), *_when(run)],
        students=students,
        teacher_sample=next(filter(None, (s.export.teacher_sample for s in run.students if s.export)), None),
        warnings=list(words.warnings(run)),
        columns=COLUMNS,
        rows=_rows(run),
        distillation=_distillation_chart(run),
        correction=_correction_chart(run),
        steps=_steps(run) if any(step.start or step.state != "Succeeded" for step in run.steps) else [],
        facts=facts.facts(run),
        seeds=facts.seeds(run.spec),
        versions=run.versions,
        fingerprints=[(step.name, step.fingerprint, step.artifact) for step in run.steps if step.fingerprint],
        manifest=resource_yaml,
    )


def _when(run: RunData) -> list[str]:
    """When it ended; of a student alone, which has no start, when it was distilled."""
    if run.end is None:
        return []
    moment = run.end.strftime("%Y-%m-%d %H:%M %Z").strip()
    if run.start is None:
        return [f"distilled {moment}"]
    return [f"finished {moment} after {words.duration((run.end - run.start).total_seconds())}"]


COLUMNS = ("Parameters", "Of teacher", "Loss", "Won back", "When pruned", "Perplexity", "Training tokens/s", "Weights")


def _rows(run: RunData) -> list[Row]:
    teacher = run.teacher
    speed = f"{teacher.tokens_per_second:,.0f}" if teacher.tokens_per_second else words.DASH
    rows = [
        Row(
            "Teacher",
            None,
            [
                words.count(teacher.parameters),
                "100 %",
                words.loss(teacher.loss),
                "",
                "",
                words.perplexity(teacher.loss),
                "",
                words.size(teacher.checkpoint_bytes),
            ],
        )
    ]
    if teacher.corrected_loss is not None:
        after = [words.loss(teacher.corrected_loss), "", "", words.perplexity(teacher.corrected_loss), speed, ""]
        rows.append(Row("Corrected teacher", None, [words.count(teacher.parameters), "100 %", *after]))
    for number, student in enumerate(run.students):
        cells = [
            words.count(student.parameters),
            words.share(student.ratio),
            words.loss(student.distilled_loss),
            words.share(student.recovered),
            words.loss(student.pruned_loss),
            words.perplexity(student.distilled_loss),
            f"{student.tokens_per_second:,.0f}" if student.tokens_per_second else words.DASH,
            words.size(student.export.weights if student.export else None),
        ]
        rows.append(Row(student.name, number % COLOURS, cells, strong=3))
    return rows


def distillation_series(run: RunData) -> tuple[list[Series], list[Level]]:
    """Validation loss of every student over the steps of its distillation, and its teacher's, before and after."""
    teacher = run.teacher
    levels: list[Level] = []
    if teacher.corrected_loss is not None:
        levels.append(Level("corrected teacher", teacher.corrected_loss))
    if teacher.loss is not None:
        levels.append(Level("teacher", teacher.loss, strong=not levels))
    series = [
        Series(student.name, student.history.validation, number % COLOURS, dots=len(student.history.validation) <= 60)
        for number, student in enumerate(run.students)
    ]
    return series, levels


def _distillation_chart(run: RunData) -> LineChart | None:
    series, levels = distillation_series(run)
    return line_chart(
        "Validation loss while distilling",
        series,
        note="nats per token, the same held-out text for every model; step 0 is the student straight after pruning",
        levels=levels,
    )


def _correction_chart(run: RunData) -> LineChart | None:
    history = run.teacher.history
    return line_chart(
        "Teacher correction",
        [
            Series("training", history.loss, 0, faint=True),
            Series("validation", history.validation, 0, dots=len(history.validation) <= 60),
        ],
        note="loss of the teacher on the students' text, nats per token",
    )


def _student(run: RunData, student: StudentData, colour: int) -> StudentView:
    charts = [
        line_chart(
            "Distillation loss",
            [Series("training", student.history.loss, colour)],
            note="divergence from the teacher's predictions on the training text, nats per token",
            name_lines=False,
        )
    ]
    teacher = run.teacher.architecture
    found = student.importance or Importance()
    named = bool(facts.pruning_settings(run.spec, student.name).get("dropLayers"))
    grids = [_layers(student, teacher, found, named=named), _heads(found)]
    areas = [
        _hidden(found),
        _mean_axis("Feed-forward neurons", list(found.ffn.values()), "neurons a layer"),
    ]
    return StudentView(
        name=student.name,
        colour=colour,
        verdict=words.verdict(student),
        sizes=_sizes(teacher, student.architecture),
        charts=[chart for chart in charts if chart],
        grids=[grid for grid in grids if grid],
        areas=[area for area in areas if area],
        sample=student.sample,
        exported=student.export is not None,
        load=student.load,
    )


def _sizes(teacher: Architecture | None, student: Architecture | None) -> list[tuple[str, str, str]]:
    """What changed: name, teacher's, student's."""
    if teacher is None or student is None:
        return []
    pairs = [
        ("Layers", teacher.layers, student.layers),
        ("Hidden size", teacher.hidden_size, student.hidden_size),
        ("Feed-forward", teacher.ffn_hidden_size, student.ffn_hidden_size),
        ("Heads", teacher.attention_heads, student.attention_heads),
        ("Key/value heads", teacher.query_groups, student.query_groups),
    ]
    return [(name, f"{before:,}", f"{after:,}") for name, before, after in pairs]


def _layers(student: StudentData, teacher: Architecture | None, found: Importance, *, named: bool) -> Grid | None:
    """One bar a layer of the teacher; `named`: by the user, and so not by what was measured."""
    if teacher is None or not student.kept_layers:
        return None
    heights, by = _logarithmic(found.layers), method_words(found.depth)
    kept = set(student.kept_layers)
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
    measured = f"{by} (log scale){meaning}; " if found.layers else ""
    which = "all" if len(kept) == teacher.layers else number_runs(student.kept_layers)
    chosen = "; the dropped ones are named in the manifest" if named else ""
    return Grid("Layers", f"{measured}kept: {which} of {teacher.layers}{chosen}", [("", cells)])


def _logarithmic(scores: Mapping[int, float]) -> dict[int, float]:
    """Heights of bars on a logarithmic scale, the highest 1; the first layer's influence dwarfs all others'."""
    positive = [score for score in scores.values() if score > 0]
    if not positive:
        return dict.fromkeys(scores, 0.0)
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


def _steps(run: RunData) -> list[StepView]:
    times = [moment for step in run.steps for moment in (step.start, step.end) if moment]
    first = min(times, default=None)
    total = (max(times) - first).total_seconds() if first else 0.0

    def at(moment: datetime) -> float:
        return (moment - first).total_seconds() / total * 100 if first and total else 0.0

    return [
        StepView(
            name=step.name,
            state=step.state,
            start=at(step.start) if step.start else None,
            width=max(at(step.end or max(times)) - at(step.start), 0.6) if step.start else 0.0,
            time=words.duration(step.seconds),
            note=words.step_note(step),
            artifact=step.artifact or "",
        )
        for step in run.steps
    ]


def manifest_of(resource: Mapping[str, Any]) -> str:
    """The manifest to run again: the resource without what a system wrote into it."""
    metadata = {key: value for key, value in (resource.get("metadata") or {}).items() if key in ("name", "namespace")}
    kept = {"apiVersion": resource.get("apiVersion"), "kind": resource.get("kind"), "metadata": metadata}
    return yaml.safe_dump(kept | {"spec": resource.get("spec")}, sort_keys=False, allow_unicode=True, width=100)
