"""Signs of life of running jobs, read from the end of their logs at a bounded rate."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from compression_operator.api.status import Progress
from compression_operator.denials import Denials
from compression_operator.kube import ApiError, Kube

from .logs import event_progress, event_time, parse_event
from .pytorchjob import CONTAINER

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 30.0
"""Time between two looks at the logs of one run, and so between two writes of its progress."""

FIRST_SECONDS = 5.0
"""Pause before the first look: a step that is over by then costs none."""

AT_ONCE = 4
LOG_LINES = 500
LOG_BYTES = 64 * 1024


@dataclass(frozen=True)
class Look:
    """What the end of a log said when it was looked at."""

    at: datetime
    progress: Progress | None = None
    last_event: datetime | None = None  # newest sign of life; None: it has given none

    def alive_at(self, now: datetime) -> datetime | None:
        """When the job last gave a sign of life, for all that is known: time since the look is not silence."""
        return None if self.last_event is None else min(now, self.last_event + (now - self.at))


class LogWatcher:
    """Follows the logs of the jobs of every run that has running ones."""

    def __init__(
        self,
        kube: Kube,
        changed: Callable[[str], None],
        *,
        denials: Denials,
        period_seconds: float = PERIOD_SECONDS,
        first_seconds: float = FIRST_SECONDS,
    ) -> None:
        """`changed` is told the key of a run whose logs have been looked at."""
        self._kube = kube
        self._changed = changed
        self._denials = denials
        self._period = period_seconds
        self._first = first_seconds
        self._looks: dict[str, Look] = {}  # by UID of the job
        self._running: dict[str, dict[str, str]] = {}  # by key of the run: UID of the job -> pod
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)

    def follow(self, key: str, running: Mapping[str, str]) -> None:
        """The running jobs of a run: their UIDs and the pods whose logs tell of them."""
        if running:
            self._running[key] = dict(running)
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._watch(key), name=f"logs of {key}")
        elif self._running.pop(key, None):
            self._tasks.pop(key).cancel()

    def look(self, uid: str, now: datetime) -> Look:
        """The newest look at a job's log. Before the first one the job has the benefit of the doubt."""
        return self._looks.get(uid) or Look(now, last_event=now)

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._looks.pop(uid, None)

    async def close(self) -> None:
        """Look no more."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, key: str) -> None:
        await asyncio.sleep(self._first)
        while True:
            for uid, pod in list(self._running.get(key, {}).items()):
                self._looks[uid] = await self._read(key.partition("/")[0], pod, self._looks.get(uid), key)
            self._changed(key)  # without news too: whoever judges silence learns that it lasts
            await asyncio.sleep(self._period)

    async def _read(self, namespace: str, pod: str, before: Look | None, key: str) -> Look:
        try:
            async with self._turn:
                with self._denials.without(namespace, "progress is not shown, nor progressDeadlineSeconds kept"):
                    text = await self._kube.log(
                        namespace, pod, container=CONTAINER, tail_lines=LOG_LINES, last_bytes=LOG_BYTES
                    )
            progress, last_event = newest(text)
        except Exception as error:
            # What cannot be heard is not silent. Whatever it is, the run's other logs are listened to all the same.
            now, foreseen = datetime.now(UTC), isinstance(error, ApiError)
            level, traceback = (logging.INFO, None) if foreseen else (logging.ERROR, error)
            logger.log(level, "cannot read the log of pod %s: %s", pod, error, extra={"run": key}, exc_info=traceback)
            return Look(now, progress=before.progress if before else None, last_event=now)
        if before is not None:
            progress, last_event = progress or before.progress, last_event or before.last_event
        return Look(datetime.now(UTC), progress, last_event)


def newest(log: str) -> tuple[Progress | None, datetime | None]:
    """The newest progress and the time of the newest event on (the end of) a log."""
    progress: Progress | None = None
    last_event: datetime | None = None
    for event in _events(log):
        progress = event_progress(event) or progress
        last_event = event_time(event) or last_event
    return progress, last_event


def _events(log: str) -> list[dict[str, Any]]:
    return [event for line in log.splitlines() if (event := parse_event(line)) is not None]
