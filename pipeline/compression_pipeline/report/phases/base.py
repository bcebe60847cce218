"""What a phase may add to a report and to a student's card."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compression_pipeline.config import PHASES, Phase, StepResult, figures_of
from compression_pipeline.report import markdown
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.charts import Area, Figures, Grid, Intervals, LineChart, Table
from compression_pipeline.report.data import Measured, RunData, StudentData

Fact = tuple[str, str]
"""A name and a sentence."""

Panel = Area | Figures | Grid | Intervals | LineChart | Table

Spec = Mapping[str, Any]
"""A run's spec, as an older or a newer version may have written it."""


@dataclass(frozen=True)
class Row:
    """One line of the table of models: cells by the heading of their column (`page.COLUMNS`)."""

    name: str
    cells: Mapping[str, str]
    colour: int | None = None


@dataclass(frozen=True)
class PhaseReport:
    """What one phase adds; each part gives nothing where the phase has not run yet."""

    rows: Callable[[RunData], Iterable[Row]] = lambda run: ()
    """Models that it gives beside the students, for the table of models."""
    charts: Callable[[RunData], Iterable[LineChart | None]] = lambda run: ()
    """Losses over its steps, of the whole run."""
    panels: Callable[[RunData, StudentData, int], Iterable[Panel | None]] = lambda run, student, colour: ()
    """What it measured of a student, in the student's colour."""
    section: str | None = None
    """Template of a section of its own, which gets `run` and `students`."""
    facts: Callable[[RunData], Iterable[Fact]] = lambda run: ()
    """What was done, in words."""
    seeds: Callable[[Spec], Iterable[tuple[str, Any]]] = lambda spec: ()
    """By the part of the spec that has it."""
    warnings: Callable[[RunData], Iterable[str]] = lambda run: ()
    """What a reader should know before trusting the figures."""
    losses: Callable[[Any], Measured] = lambda result: Measured()
    """Validation losses that its result tells: those of later phases count first."""
    card: Callable[[Ancestry], Iterable[str]] = lambda ancestry: ()
    """Paragraphs of the student's card on how it was made."""


def plain(phase: Phase) -> PhaseReport:
    """The report of a phase that says nothing of its own: the figures of its result, with their descriptions."""
    title = phase.value.capitalize()

    def panels(run: RunData, student: StudentData, colour: int) -> Iterator[Panel]:
        if rows := _figures(student.results.get(phase)):
            yield Figures(title, f"what {phase.value} reports", rows)

    def facts(run: RunData) -> Iterator[Fact]:
        if not PHASES[phase].per_student and (rows := _figures(run.results.get(phase))):
            yield title, "; ".join(f"{name} {value}" for name, value, _ in rows)

    def card(ancestry: Ancestry) -> Iterator[str]:
        if phase in ancestry.made:
            yield f"**{title}.** What it reports:"
            yield markdown.table(("Figure", "Value", "Meaning"), _figures(ancestry.made[phase].result))

    return PhaseReport(panels=panels, facts=facts, card=card)


def _figures(result: StepResult | None) -> Sequence[tuple[str, str, str]]:
    return [(figure.label, figure.text, figure.meaning) for figure in figures_of(result)] if result else []
