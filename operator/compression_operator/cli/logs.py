"""`compression logs`: what a step's jobs wrote, for a person or as it is."""

import argparse
import sys
import time
from collections.abc import Callable

from compression_operator.api.run import CompressionRun
from compression_operator.joblog.lines import LineReader, describe, parse_event
from compression_operator.local.jobfiles import JobFolder
from compression_operator.local.workdir import Workdir, WorkdirError

from .common import Code, find_workdir

LOOK_SECONDS = 0.2


def logs(arguments: argparse.Namespace) -> int:
    """Print the log of a step's newest attempt, or follow it through later ones. Raises WorkdirError."""
    workdir, run = find_workdir(arguments.workdir)
    shown = as_it_is if arguments.raw else readable
    folder = _newest(workdir, run, arguments.step)
    if not arguments.follow:
        if folder is None:
            raise WorkdirError(f"{arguments.step} has not started yet; `--follow` waits for it")
        reader = LineReader(folder.log)
        _print([*reader.read(), *filter(None, [reader.unended_line()])], shown)
        return Code.SUCCEEDED
    _follow(workdir, run, arguments.step, shown)
    return Code.SUCCEEDED


def as_it_is(line: str) -> str:
    """The line."""
    return line


def readable(line: str) -> str:
    """An event as a sentence, any other line as it is."""
    event = parse_event(line)
    return line if event is None else describe(event)


def _follow(workdir: Workdir, run: CompressionRun, step: str, shown: Callable[[str], str]) -> None:
    """Print what comes, until no command works on the directory any more, or the step's job has ended for good."""
    folder: JobFolder | None = None
    reader: LineReader | None = None
    while True:
        # In this order: what is written after these looks is printed by the next round.
        working = workdir.in_use
        ended = folder is not None and folder.exit() is not None
        if reader is not None:
            _print(list(reader.read()), shown)
        newest = _newest(workdir, run, step)
        if newest is not None and (folder is None or newest.path != folder.path):
            if reader is not None:
                _print([line for line in [reader.unended_line()] if line], shown)
            folder, reader = newest, LineReader(newest.log)
            continue
        if not working or (ended and _final(workdir, step)):
            if reader is not None:
                _print([line for line in [reader.unended_line()] if line], shown)
            return
        time.sleep(LOOK_SECONDS)


def _final(workdir: Workdir, step: str) -> bool:
    run = workdir.read()
    return run is not None and any(s.name == step and s.state.final for s in run.status.steps)


def _newest(workdir: Workdir, run: CompressionRun, step: str) -> JobFolder | None:
    """The newest job of the step. Raises WorkdirError where the run has no such step."""
    names = [known.name for known in run.status.steps]
    if names and step not in names:
        raise WorkdirError(f"there is no step {step}; the steps are {', '.join(names)}")
    folders = [JobFolder(path) for path in workdir.jobs.iterdir()] if workdir.jobs.is_dir() else []
    records = [(record.created, folder) for folder in folders if (record := folder.record()) and record.step == step]
    return max(records, key=lambda pair: pair[0])[1] if records else None


def _print(lines: list[str], shown: Callable[[str], str]) -> None:
    for line in lines:
        print(shown(line))
    sys.stdout.flush()
