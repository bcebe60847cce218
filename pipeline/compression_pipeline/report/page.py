"""The report's page: figures and charts laid out for the template. Everything it writes is escaped by jinja2."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from compression_pipeline.config import Architecture, Verdict

from . import words
from .charts import COLOURS, LineChart
from .data import RunData, StudentData
from .importance import Importance
from .phases import Row, all_phases
from .phases.base import Fact, Panel
from .phases.prune import importance_panels

COLUMNS = ("Parameters", "Of teacher", "Loss", "Won back", "When pruned", "Perplexity", "Training tokens/s", "Weights")
"""Of the table of models."""

STRONG = "Won back"


@dataclass(frozen=True)
class StudentView:
    """Everything the template shows of one student."""

    name: str
    colour: int
    verdict: words.Verdict
    sizes: Sequence[tuple[str, str, str]]
    panels: Sequence[Panel]
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
    phases = all_phases()
    # The newest first: that a student learns is what the page is read for.
    charts = [chart for phase in reversed(phases) for chart in phase.charts(run)]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            run=run,
            lead=[_subtitle(run), *_when(run)],
            students=[_student(run, student, number % COLOURS) for number, student in enumerate(run.students)],
            sections=[phase.section for phase in phases if phase.section],
            warnings=list(_warnings(run)),
            columns=COLUMNS,
            strong=STRONG,
            rows=[row for phase in phases for row in phase.rows(run)] + _rows(run),
            charts=[chart for chart in charts if chart],
            steps=_steps(run) if any(step.start_time or step.state != "Succeeded" for step in run.steps) else [],
            facts=[*(fact for phase in phases for fact in phase.facts(run)), *_gates(run)],
            seeds=[seed for phase in phases for seed in phase.seeds(run.spec)],
            versions=run.versions,
            fingerprints=[(step.name, step.fingerprint, step.artifact) for step in run.steps if step.fingerprint],
            manifest=resource_yaml,
        )
    )


def render_importance(
    teacher: Architecture, kept_layers: Sequence[int], found: Importance, *, named: bool, title: str
) -> str:
    """What prune measured and kept, as a page of its own; arguments as of `importance_panels`."""
    panels = [panel for panel in importance_panels(teacher, kept_layers, found, named=named) if panel]
    return environment().get_template("importance.html.j2").render(title=title, panels=panels)


def render_chart(chart: LineChart) -> str:
    """A line chart as an SVG file, for places that show no HTML (a README, a chat)."""
    return environment().get_template("chart.svg.j2").render(chart=chart)


def environment() -> Environment:
    """Where the templates are read; what is put into them is escaped."""
    return Environment(
        loader=PackageLoader("compression_pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _subtitle(run: RunData) -> str:
    teacher = str((run.spec.get("teacher") or {}).get("model", "the teacher"))
    dataset = run.spec.get("dataset") or {}
    several = ", ".join(str(one.get("source")) for one in dataset.get("sources") or [])
    source = several or str(dataset.get("source", "the dataset"))
    number = len(run.students)
    return f"{teacher} → {number} student{'' if number == 1 else 's'}, on {source}"


def _warnings(run: RunData) -> Iterator[str]:
    """What a reader should know before trusting the figures."""
    missed = [f"{student.name} misses accept: {verdict}." for student, verdict in _missed(run)]
    yield from missed
    if run.phase != "Succeeded" and not (missed and all(step.state == "Succeeded" for step in run.steps)):
        yield f"The run is {run.phase}, so this page is not complete. {run.message}".strip()
    for phase in all_phases():
        yield from phase.warnings(run)
    for step in run.steps:
        if step.failures and step.state == "Succeeded":
            times = "once" if step.failures == 1 else f"{step.failures} times"
            yield f"{step.name} failed {times} before it succeeded in attempt {step.attempt}."
    yield from run.gaps


def _missed(run: RunData) -> Iterator[tuple[StudentData, Verdict]]:
    for student in run.students:
        yield from ((student, verdict) for verdict in student.gate if verdict.met is False)


def _gates(run: RunData) -> Iterator[Fact]:
    """What `accept` asks for, and what became of it."""
    for student in run.students:
        if student.gate:
            yield f"Gate of {student.name}", "; ".join(_verdict(verdict) for verdict in student.gate)


def _verdict(verdict: Verdict) -> str:
    became = {None: "open", True: "met", False: "missed"}
    return f"{verdict}: {became[verdict.met]}"


def _when(run: RunData) -> list[str]:
    """When it ended; of a student alone, which has no start, when it was distilled."""
    if run.end is None:
        return []
    moment = run.end.strftime("%Y-%m-%d %H:%M %Z").strip()
    if run.start is None:
        return [f"distilled {moment}"]
    return [f"finished {moment} after {words.duration((run.end - run.start).total_seconds())}"]


def _rows(run: RunData) -> list[Row]:
    """A line for each student."""
    rows: list[Row] = []
    for number, student in enumerate(run.students):
        cells = {
            "Parameters": words.count(student.parameters),
            "Of teacher": words.share(student.ratio),
            "Loss": words.loss(student.distilled_loss),
            "Won back": words.share(student.recovered),
            "When pruned": words.loss(student.pruned_loss),
            "Perplexity": words.perplexity(student.distilled_loss),
            "Training tokens/s": words.speed(student.tokens_per_second),
            "Weights": words.size(student.export.weights if student.export else None),
        }
        rows.append(Row(student.name, cells, number % COLOURS))
    return rows


def _student(run: RunData, student: StudentData, colour: int) -> StudentView:
    panels = (panel for phase in all_phases() for panel in phase.panels(run, student, colour))
    return StudentView(
        name=student.name,
        colour=colour,
        verdict=words.verdict(student),
        sizes=_sizes(run.teacher.architecture, student.architecture),
        panels=[panel for panel in panels if panel],
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


def _steps(run: RunData) -> list[StepView]:
    times = [moment for step in run.steps for moment in (step.start_time, step.completion_time) if moment]
    first = min(times, default=None)
    total = (max(times) - first).total_seconds() if first else 0.0

    def at(moment: datetime) -> float:
        return (moment - first).total_seconds() / total * 100 if first and total else 0.0

    return [
        StepView(
            name=step.name,
            state=step.state,
            start=at(step.start_time) if step.start_time else None,
            width=max(at(step.completion_time or max(times)) - at(step.start_time), 0.6) if step.start_time else 0.0,
            time=words.duration(step.seconds),
            note=words.step_note(step),
            artifact=step.artifact or "",
        )
        for step in run.steps
    ]


def as_yaml(manifest: Mapping[str, Any]) -> str:
    """A manifest for people."""
    return yaml.safe_dump(dict(manifest), sort_keys=False, allow_unicode=True, width=100)
