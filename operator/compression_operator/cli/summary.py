"""The end of a run: the table of students, where everything is, and why what failed did."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compression_operator.api.run import CompressionRun
from compression_operator.api.status import Evaluation, StepState, StudentStatus
from compression_operator.local.workdir import Workdir
from compression_pipeline.config import TaskScore, won_back

from .common import WIDE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ABSENT = "-"
HEADINGS = (
    "student",
    "parameters",
    "ratio",
    "loss: teacher",
    "corrected",
    "pruned",
    "distilled",
    "recovered",
    "tokens/s",
)
ACCEPTED = "accepted"
"""Heading of a run that has a gate."""

ABREAST = 3
"""Students beside each other in a narrow terminal."""

PADDING = 3
"""Columns of a terminal between two columns of the table."""


def print_students(console: "Console", run: CompressionRun) -> None:
    """The table of students, a row each or in a narrow terminal a column each, and the sentence that each wrote."""
    from rich.text import Text

    students = run.status.students
    # Of phases that this table knows nothing of.
    others = tuple(dict.fromkeys(name for student in students for name in student.figures or {}))
    judged = any(student.gate for student in students)
    rows = [
        (*HEADINGS, *([ACCEPTED] if judged else ()), *others),
        *((*_row(student), *(_gate(student) if judged else ()), *_figures(student, others)) for student in students),
    ]
    if console.width >= WIDE + sum(len(name) + PADDING for name in rows[0][len(HEADINGS) :]):
        console.print(_table(rows))
    else:
        for first in range(1, len(rows), ABREAST):
            console.print(_table(list(zip(rows[0], *rows[first : first + ABREAST], strict=True))))
    scores = list(_scores(run))
    if scores:
        console.print(_table([("student", "task", "metric", "teacher", "corrected", "score", "change"), *scores]))
    for student in run.status.students:
        if student.sample:
            text = Text.assemble((f"{student.name}: ", "bold"), " ".join(student.sample.split()))
            console.print(text, soft_wrap=True)


def _scores(run: CompressionRun) -> Iterator[tuple[str, ...]]:
    """A row for each task of each student, beside what its teachers scored."""
    teacher = run.status.teacher
    baselines = (teacher.evaluation, teacher.corrected_evaluation) if teacher else (None, None)
    for student in run.status.students:
        for score in student.evaluation.tasks if student.evaluation else []:
            others = [_score_of(score.name, told) for told in baselines]
            change = score.change(others[0])
            cells = [_score_text(one) for one in (*others, score)]
            yield student.name, score.name, score.measure, *cells, ABSENT if change is None else f"{change:+.1f} %"


def _score_of(task: str, told: Evaluation | None) -> TaskScore | None:
    return next((score for score in told.tasks if score.name == task), None) if told else None


def _score_text(score: TaskScore | None) -> str:
    """A score with half of its 95 % confidence interval."""
    if score is None:
        return ABSENT
    return f"{score.score:.3f}" + (f" ±{score.interval[1] - score.score:.3f}" if score.interval else "")


def _figures(student: StudentStatus, names: Sequence[str]) -> Iterator[str]:
    for value in map((student.figures or {}).get, names):
        yield ABSENT if value is None else f"{value:,.5g}"


def _gate(student: StudentStatus) -> Iterator[str]:
    met = [verdict.met for verdict in student.gate or ()]
    yield ABSENT if not met or None in met else "yes" if all(met) else "no"


def _table(rows: Sequence[Sequence[str]]) -> "Table":
    """The first row as headings, figures to the right."""
    from rich.table import Table

    table = Table(header_style="bold", title=None)
    table.add_column(rows[0][0], overflow="fold")
    for heading in rows[0][1:]:
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _row(student: StudentStatus) -> Iterator[str]:
    loss = student.validation_loss
    taught_by = loss.teacher if loss.corrected_teacher is None else loss.corrected_teacher
    won = won_back(taught_by, loss.pruned, loss.final)
    yield student.name
    yield ABSENT if student.parameters is None else f"{student.parameters:,}"
    yield ABSENT if student.compression_ratio is None else f"{student.compression_ratio:.1%}"
    for value in (loss.teacher, loss.corrected_teacher, loss.pruned, loss.final):
        yield ABSENT if value is None else f"{value:.4f}"
    yield ABSENT if won is None else f"{won:.1%}"
    yield ABSENT if student.tokens_per_second is None else f"{student.tokens_per_second:,.0f}"


def link_students(workdir: Workdir, run: CompressionRun) -> dict[str, Path]:
    """Let `<workdir>/students/<name>` lead to each exported checkpoint; returns those there are. Raises OSError."""
    workdir.students.mkdir(exist_ok=True)
    links: dict[str, Path] = {}
    for student in run.status.students:
        target = workdir.store / "artifacts" / (student.artifact or "") / "model"
        if student.artifact is not None and target.is_dir():
            link = links[student.name] = workdir.students / student.name
            # Relative, so that the folder may be moved.
            wanted = os.path.relpath(target, workdir.students)
            if not link.is_symlink() or str(link.readlink()) != wanted:
                link.unlink(missing_ok=True)
                link.symlink_to(wanted)
    for link in workdir.students.iterdir():
        if link.is_symlink() and link.name not in links:
            link.unlink()
    return links


def failures(workdir: Workdir, run: CompressionRun) -> Iterator[str]:
    """Why the run failed: for each failed step its message and the place of its log."""
    failed = [step for step in run.status.steps if step.state is StepState.FAILED]
    for step in failed:
        yield f"{step.name} failed: {step.message}"
        last = step.job_name or (step.last_failure.job_name if step.last_failure else None)
        log = None if last is None else workdir.jobs / last / "log"
        if log is not None and log.exists():
            yield f"  its log: {log}"
    if not failed:
        # No step is to blame where the students do not fit the teacher, or miss their gate.
        yield from (c.message for c in run.status.conditions if c.type == "Stalled" and c.status == "True")
