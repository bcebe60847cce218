"""Signs of life of running jobs, read from the end of their logs at a bounded rate."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from compression_operator.api.attempts import Progress
from compression_operator.api.templates import CONTAINER
from compression_operator.core.jobs import JobState, ObservedJob
from compression_operator.joblog.lines import event_progress, event_time, event_wait, parse_event
from compression_operator.kube.client import ApiError, Kube
from compression_operator.kube.denied_permissions import Denials

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 30.0
"""Time between two looks at the logs of one run, and so between two writes of its progress."""

PACE = 2 / 3
"""Part of that time for which a job has gone on, at least, when its progress is written again."""

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
    waits: bool = False  # whether the job's last word is that it waits for another one, which makes the same
    turn: datetime | None = None  # when it had waited; None: it had not, for all that is known

    def alive_at(self, now: datetime) -> datetime | None:
        """When the job last gave a sign of life, for all that is known: time since the look is not silence."""
        return None if self.last_event is None else min(now, self.last_event + (now - self.at))

    def applied_to(self, job: ObservedJob, now: datetime) -> ObservedJob:
        """The job with what its log tells of it. A job waits, if at all, before it does anything else."""
        waited = 0.0
        if job.state is JobState.RUNNING and job.started is not None:
            until = now if self.waits else self.turn or job.started
            waited = max(0.0, (until - job.started).total_seconds())
        return replace(job, progress=self.progress, last_event=self.alive_at(now), waited_seconds=waited)

    def after(self, before: "Look | None") -> "Look":
        """This look, with what the one before it told of what has gone from the log's end since, or cannot be read."""
        if before is None:
            return self
        return replace(
            self,
            progress=self.progress or before.progress,
            last_event=self.last_event or before.last_event,
            turn=self.turn or (before.at if before.waits else before.turn),
        )


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
        elif self._running.pop(key, None) is not None:
            self._tasks.pop(key).cancel()

    def newest(self, uid: str, now: datetime) -> Look:
        """The newest look at a job's log. Before the first one the job has the benefit of the doubt."""
        return self._looks.get(uid) or Look(now, last_event=now, waits=True)

    def with_progress(self, job: ObservedJob, uid: str, known: Progress | None, now: datetime) -> ObservedJob:
        """The job with what its log tells of it; its progress once it is a while ahead of what is `known`, whoever
        wrote that, so that writes are as rare as looks.
        """
        told = self.newest(uid, now).applied_to(job, now)
        seen = told.progress
        if job.state is not JobState.RUNNING or not (seen and seen.time and known and known.time):
            return told
        soon = (seen.time - known.time).total_seconds() < self._period * PACE
        return replace(told, progress=known) if soon else told

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._looks.pop(uid, None)
        for running in self._running.values():
            running.pop(uid, None)  # its log may be being read

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
        while self._running.get(key):
            for uid, pod in list(self._running.get(key, {}).items()):
                look = await self._read(key.partition("/")[0], pod, self._looks.get(uid), key)
                if uid in self._running.get(key, {}):  # else it has ended meanwhile, and may have been forgotten
                    self._looks[uid] = look
            self._changed(key)  # without news too: whoever judges silence learns that it lasts
            await asyncio.sleep(self._period)
        # All of its jobs are gone, and nobody has told so.
        self._running.pop(key, None)
        self._tasks.pop(key, None)

    async def _read(self, namespace: str, pod: str, before: Look | None, key: str) -> Look:
        try:
            async with self._turn:
                with self._denials.note_denial(namespace, "progress is not shown, nor progressDeadlineSeconds kept"):
                    text = await self._kube.log(
                        namespace, pod, container=CONTAINER, tail_lines=LOG_LINES, last_bytes=LOG_BYTES
                    )
            return newest(text, datetime.now(UTC)).after(before)
        except Exception as error:
            # What cannot be heard is not silent. Whatever it is, the run's other logs are listened to all the same.
            now, foreseen = datetime.now(UTC), isinstance(error, ApiError)
            level, traceback = (logging.INFO, None) if foreseen else (logging.ERROR, error)
            logger.log(level, "cannot read the log of pod %s: %s", pod, error, extra={"run": key}, exc_info=traceback)
            return Look(now, last_event=now).after(before)


def newest(log: str, at: datetime) -> Look:
    """What (the end of) a log tells that was read at `at`."""
    progress: Progress | None = None
    last_event: datetime | None = None
    turn: datetime | None = None
    waits = False
    for event in _events(log):
        progress = event_progress(event) or progress
        last_event = event_time(event) or last_event
        before, waits = waits, bool(event_wait(event))
        turn = event_time(event) if before and not waits else turn
    return Look(at, progress, last_event, waits, turn)


def _events(log: str) -> list[dict[str, Any]]:
    return [event for line in log.splitlines() if (event := parse_event(line)) is not None]
