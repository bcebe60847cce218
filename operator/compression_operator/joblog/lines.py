"""A job's log: JSON-line events among plain lines, read as they come and shown to a person."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from compression_operator.api.attempts import Progress
from compression_operator.core.steps import seconds
from compression_pipeline.config import human_bytes

TAIL = 64 * 1024
"""Bytes at the end of a log that are read at first: the newest progress is among them."""


def parse_event(line: str) -> dict[str, Any] | None:
    """The event on a line of a log, or None where the line is no event."""
    if not line.startswith("{"):
        return None
    try:
        found: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    event = cast(dict[str, Any], found)
    return event if isinstance(event.get("event"), str) else None


def event_time(event: dict[str, Any]) -> datetime | None:
    """When the event was written; None where it does not say so in RFC 3339 with an offset."""
    try:
        time = datetime.fromisoformat(event["time"])
    except (KeyError, TypeError, ValueError):
        return None
    return time if time.tzinfo is not None else None


_PROGRESS = tuple(to_camel(name) for name in Progress.model_fields if name != "time")


def event_progress(event: dict[str, Any]) -> Progress | None:
    """The progress that an event tells of; None for every other event."""
    if event["event"] != "progress":
        return None
    try:
        told = Progress.model_validate({name: event[name] for name in _PROGRESS if event.get(name) is not None})
    except ValidationError:
        return None
    time = event_time(event)
    return told.model_copy(update={"time": seconds(time) if time else None})


def event_wait(event: dict[str, Any]) -> str:
    """What the job says that it waits for: for another one, which makes the same artifact; else an empty string."""
    said = str(event.get("message", ""))
    return said if event["event"] == "info" and said.startswith("waits for ") else ""


class LineReader:
    """The complete lines that were added to a file since the last call; bytes that aren't UTF-8 are replaced."""

    def __init__(self, path: Path, *, tail: int | None = None) -> None:
        """`tail`: begin at most this many bytes before the end, at the start of a line."""
        self._path = path
        self._tail = tail
        self._offset: int | None = None
        self._partial = b""

    def read(self) -> Iterator[str]:
        """New complete lines, without their ends. Nothing where the file does not exist yet."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if self._offset is None:
            self._offset = self._tail_offset(size)
        if size == self._offset:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        *lines, self._partial = (self._partial + new).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")

    def unended_line(self) -> str:
        """What was read after the last end of line: all there is to come once the writer has ended."""
        rest, self._partial = self._partial, b""
        return rest.decode(errors="replace")

    def _tail_offset(self, size: int) -> int:
        if self._tail is None or size <= self._tail:
            return 0
        with self._path.open("rb") as file:
            file.seek(size - self._tail - 1)
            skipped = file.readline()  # ends with the line that the cut falls into
        return size - self._tail - 1 + len(skipped)


class ProgressReader:
    """The newest progress and sign of life on a log, at a cost that goes with what is new on it."""

    def __init__(self, path: Path, *, warned: Callable[[str], None] | None = None) -> None:
        """`warned` is told the message of each warning."""
        self._lines = LineReader(path, tail=TAIL)
        self._warned = warned
        self.progress: Progress | None = None
        self.last_event: datetime | None = None
        self.waits = ""
        """What the job says that it waits for, until it says anything else."""

    def update(self) -> None:
        """Read what is new."""
        for line in self._lines.read():
            event = parse_event(line)
            if event is None:
                continue
            self.last_event = event_time(event) or self.last_event
            self.progress = event_progress(event) or self.progress
            self.waits = event_wait(event)
            if event["event"] == "warning" and self._warned is not None:
                self._warned(str(event.get("message", "")))


def last_line(path: Path) -> str | None:
    """The last line of a log that is neither empty nor an event: what a program that crashed said last."""
    reader = LineReader(path, tail=TAIL)
    lines = [*reader.read(), reader.unended_line()]
    said = (line.strip() for line in reversed(lines) if parse_event(line) is None)
    return next((line for line in said if line), None)


def describe(event: dict[str, Any]) -> str:
    """One line for a person: the local time of day, what happened."""
    time = event_time(event)
    clock = time.astimezone().strftime("%H:%M:%S") if time else "--:--:--"
    return f"{clock}  {_text(event)}"


def _text(event: dict[str, Any]) -> str:
    kind = event["event"]
    if kind == "progress":
        return _progress_text(event)
    if kind == "metric":
        at = f" at step {event['step']}" if event.get("step") is not None else ""
        return f"{event.get('name', 'metric')} {_number(event.get('value'))}{at}"
    if kind in ("warning", "info", "error"):
        message = str(event.get("message", ""))
        return message if kind == "info" else f"{kind}: {message}"
    shown = {k: v for k, v in event.items() if k not in ("event", "time")}
    if kind == "result" and isinstance(shown.get("result"), dict):
        shown = cast(dict[str, Any], shown["result"])
    # Nested values (an architecture) would fill the screen; `--raw` has them.
    fields = (f"{k} {_number(v)}" for k, v in shown.items() if not isinstance(v, dict | list))
    return f"{kind}: {', '.join(fields)}"


def _progress_text(event: dict[str, Any]) -> str:
    unit = str(event.get("unit", "steps"))
    parts = [_progress(event, unit)]
    if event.get("loss") is not None:
        parts.append(f"loss {_number(event['loss'])}")
    if isinstance(scores := event.get("scores"), dict):
        parts += [f"{name} {_number(score)}" for name, score in cast(dict[str, Any], scores).items()]
    if event.get("tokensPerSecond") is not None:
        parts.append(f"{_number(event['tokensPerSecond'])} tokens/s")
    if event.get("documentsPerSecond") is not None:
        parts.append(f"{_number(event['documentsPerSecond'])} documents/s")
    if isinstance(speed := event.get("teraflopsPerDevice"), int | float):
        parts.append(f"{_number(speed)} TFLOP/s")
    if isinstance(share := event.get("modelFlopsUtilization"), int | float):
        parts.append(f"MFU {share:.1%}")
    if event.get("etaSeconds") is not None:
        parts.append(f"ETA {duration(event['etaSeconds'])}")
    return "  ".join(parts)


def _progress(event: dict[str, Any], unit: str) -> str:
    done, total = event.get("step"), event.get("totalSteps")
    if unit == "bytes" and isinstance(done, int) and isinstance(total, int):
        return f"{human_bytes(done)} of {human_bytes(total)}"
    return f"{unit.removesuffix('s')} {done}/{total}"


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42s, 3m05s, 2h07m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"
