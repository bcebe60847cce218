"""How long a job has run, and been silent, by what was seen of it. Pure."""

from datetime import datetime, timedelta
from typing import Any

LONGEST_GAP = 10.0
"""Seconds between two looks that count at most. Looks come every second: after a longer gap this process, or the whole
machine, was stopped or asleep, and that is nobody's silence.
"""


class RunningTime:
    """Counts from look to look on a clock that nobody sets: the time of day jumps, and goes on while a machine sleeps.

    The longest silence that is not counted is that before the first look, which comes as soon as the job runs.
    """

    def __init__(self) -> None:
        self.running = 0.0  # seconds
        self.silent = 0.0  # seconds
        self.waited = 0.0  # seconds of those that it ran
        self._at: float | None = None
        self._heard: datetime | None = None

    def look(self, at: float, last_event: datetime | None, *, waits: bool = False) -> None:
        """The job's newest sign of life at `at` seconds of the clock, and whether it waits for another job."""
        passed = 0.0 if self._at is None else min(at - self._at, LONGEST_GAP)
        self._at = at
        self.running += passed
        self.waited += passed if waits else 0.0
        self.silent = self.silent + passed if last_event == self._heard else 0.0
        self._heard = last_event

    def fields(self, now: datetime, started: datetime) -> dict[str, Any]:
        """Fields of an ObservedJob that tell this by the time of day. Where that was set back, the seconds that do not
        count as running are fewer than none.
        """
        uncounted = (now - started) - timedelta(seconds=self.running)
        alive_at = now - uncounted - timedelta(seconds=self.silent)
        suspended = uncounted.total_seconds()
        return {"suspended_seconds": suspended, "waited_seconds": self.waited, "last_event": alive_at}
