"""What a person sees while a run goes on: a live table in a terminal, a line for each change elsewhere."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import IO, TYPE_CHECKING, Protocol

from compression_operator.api.attempts import Progress
from compression_operator.api.run import CompressionRun
from compression_operator.api.status import Step, StepState
from compression_operator.core.plan import phases_that_were_planned
from compression_operator.joblog.lines import duration
from compression_pipeline.config import PHASES, ExitClass

from .common import WIDE

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BAR, NARROW_BAR = 24, 10
"""Columns of a progress bar, in a wide terminal and in a narrow one."""

Cached = Callable[[Step], bool]
"""Whether the step's artifact was there already when the command began."""

Resumed = Callable[[Step], bool]
"""Whether an earlier command had begun the step as it is now, and was stopped before its end."""


class View(Protocol):
    """Shows a run as it goes on."""

    def update(self, run: CompressionRun) -> None:
        """The run as it stands now."""
        ...

    def print_line(self, text: str) -> None:
        """A line worth reading; it stays."""
        ...

    def close(self) -> None:
        """Nothing more is shown."""
        ...


def step_word(step: Step, cached: bool) -> str:
    """One word for how a step stands."""
    if step.state is StepState.SUCCEEDED:
        return "cached" if cached else "done"
    if step.state is StepState.PENDING and step.retry_time is not None:
        return "retry"
    return step.state.value.lower()


def shown_word(run: CompressionRun, step: Step, cached: Cached) -> str:
    """The word for a step of a run that goes on.

    What was finished earlier may have to run again until the plan in force says that it stands: the one made from this
    spec and from what steps have found, e.g. what the sources turned out to be.
    """
    planned = step.phase in phases_that_were_planned(run.status)
    confirmed = planned and run.status.observed_generation == run.metadata.generation
    if step.state is StepState.SUCCEEDED and not PHASES[step.phase].reads_sources and not confirmed:
        return "pending"
    return step_word(step, cached(step))


def attempt_note(run: CompressionRun, step: Step, resumed: Resumed) -> str:
    """What a person should know of the attempt: that it goes on after an interruption, or follows a counted failure."""
    interrupted = step.last_failure is not None and step.last_failure.exit_class == ExitClass.INTERRUPTED.value
    if step.failures and not interrupted:
        return f"retry {step.failures} of {run.spec.phases.of(step.phase).retry_limit}"
    return "resumed" if interrupted or resumed(step) else ""


def step_seconds(step: Step, now: datetime) -> float | None:
    """How long the step has run, or ran; None before it started."""
    if step.start_time is None:
        return None
    return ((step.completion_time or now) - step.start_time).total_seconds()


class PlainView:
    """A line for each change, and for every tenth of a step's way."""

    def __init__(self, stream: IO[str], *, now: Callable[[], datetime], cached: Cached, resumed: Resumed) -> None:
        self._stream = stream
        self._resumed = resumed
        self._now = now
        self._cached = cached
        self._shown: dict[str, tuple[str, int, str, int]] = {}  # step -> word, attempt, what it waits for, tenth

    def update(self, run: CompressionRun) -> None:
        for step in run.status.steps:
            word = shown_word(run, step, self._cached)
            tenth = _tenth(step.progress) if step.state is StepState.RUNNING else 0
            shown = (word, step.attempt, step.message if step.state is StepState.RUNNING else "", tenth)
            before = self._shown.get(step.name)
            if shown == before or (before is None and word == "pending"):
                continue
            self._shown[step.name] = shown
            if before is not None and shown[:3] == before[:3] and tenth <= before[3]:
                continue  # a resumed step begins again further back
            begins = before is None or shown[:2] != before[:2]
            note = attempt_note(run, step, self._resumed) if begins and word == "running" else ""
            self.print_line(f"{step.name}: {self._text(step, word)}{f' ({note})' if note else ''}")

    def print_line(self, text: str) -> None:
        self._stream.write(f"{self._now().astimezone():%H:%M:%S}  {text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Lines need no end."""

    def _text(self, step: Step, word: str) -> str:
        seconds = step_seconds(step, self._now())
        match word:
            case "running" if step.message:
                return step.message
            case "running" if step.progress is not None:
                return ", ".join(part for part in _progress_words(step.progress) if part)
            case "done" if seconds is not None:
                return f"done in {duration(seconds)}"
            case "failed" | "retry" | "skipped" | "starting" if step.message:
                return f"{word}: {step.message}"
            case _:
                return word


class LiveView:
    """A table that is drawn anew several times a second."""

    def __init__(self, console: "Console", *, now: Callable[[], datetime], cached: Cached, resumed: Resumed) -> None:
        from rich.live import Live

        self._resumed = resumed
        self._now = now
        self._cached = cached
        self._run: CompressionRun | None = None
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render, transient=False)
        self._live.start()

    def update(self, run: CompressionRun) -> None:
        self._run = run

    def print_line(self, text: str) -> None:
        from rich.text import Text

        self._live.console.print(Text(text))

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        wide = self._console.width >= WIDE
        table.add_column("phase", no_wrap=True)
        table.add_column("student", no_wrap=True, max_width=16)
        table.add_column("state", no_wrap=True)
        bar = BAR if wide else NARROW_BAR
        table.add_column("", width=bar)
        for name in ("loss", "tokens/s", "time", "ETA"):
            table.add_column(name, justify="right", no_wrap=True, min_width=6)
        if wide:
            table.add_column("", overflow="fold", style="dim")
        if (run := self._run) is None:
            return table
        messages: list[Text] = []
        for step in run.status.steps:
            word = shown_word(run, step, self._cached)
            message = Text(self._message(run, step, word))
            cells = self._cells(step, word, bar)
            table.add_row(*cells, *([message] if wide else ()))
            if message and not wide:
                messages.append(Text.assemble((f"{step.name}: ", "bold"), message, overflow="fold"))
        return Group(table, *messages)

    def _cells(self, step: Step, word: str, width: int) -> "Iterator[RenderableType]":
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        style = {
            "done": "green",
            "cached": "green",
            "failed": "bold red",
            "retry": "yellow",
            "running": "bold",
            "skipped": "dim",
        }
        seconds = None if word in ("cached", "pending") else step_seconds(step, self._now())
        progress = step.progress
        running = step.state is StepState.RUNNING
        bar: RenderableType = ""
        if running and progress is not None:
            bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=width)
        elif running:
            bar = ProgressBar(total=None, pulse=True, width=width)
        yield step.phase.value
        yield Text(step.student or "", overflow="ellipsis")
        yield Text(word, style=style.get(word, ""))
        yield bar
        yield f"{progress.loss:.3f}" if progress and progress.loss is not None else ""
        yield f"{progress.tokens_per_second:,.0f}" if progress and progress.tokens_per_second else ""
        yield duration(seconds) if seconds is not None else ""
        yield duration(progress.eta_seconds) if running and progress and progress.eta_seconds is not None else ""

    def _message(self, run: CompressionRun, step: Step, word: str) -> str:
        if word == "running":
            note = attempt_note(run, step, self._resumed)
            return step.message or note or ", ".join(_told_by(step.progress))
        return step.message if word in ("failed", "retry", "skipped", "starting") else ""


def _tenth(progress: Progress | None) -> int:
    return 0 if progress is None or not progress.total_steps else progress.step * 10 // progress.total_steps


def _documents_words(progress: Progress | None) -> str:
    speed = progress.documents_per_second if progress else None
    return f"{speed:,.0f} documents/s" if speed else ""


def _scores_words(progress: Progress | None) -> str:
    scores = progress.scores if progress else None
    return ", ".join(f"{name} {score:.3f}" for name, score in (scores or {}).items())


def _export_words(progress: Progress | None) -> str:
    step = progress.exported_step if progress else None
    return f"exported step {step:,}" if step is not None else ""


def _told_by(progress: Progress | None) -> list[str]:
    """What some phases tell of their progress beside what has a column."""
    return [said for words in (_documents_words, _scores_words, _export_words) if (said := words(progress))]


def _progress_words(progress: Progress) -> list[str]:
    return [
        f"{progress.step}/{progress.total_steps}",
        f"loss {progress.loss:.3f}" if progress.loss is not None else "",
        _scores_words(progress),
        f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second else "",
        _documents_words(progress),
        _export_words(progress),
        f"ETA {duration(progress.eta_seconds)}" if progress.eta_seconds is not None else "",
    ]
