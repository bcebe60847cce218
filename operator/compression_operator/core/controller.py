"""The loop: a queue of keys -> observe -> reconcile -> apply -> one status write. The same locally and on a cluster."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from compression_operator.api.run import CompressionRun
from compression_operator.api.status import CompressionRunStatus

from .jobs import Backend, CreateJob, Decision, DeleteJob, Job, ObservedJob, RunEvent
from .workqueue import QueueClosed, WorkQueue

logger = logging.getLogger(__name__)

Reconcile = Callable[[CompressionRun, Sequence[ObservedJob], datetime, Mapping[str, Exception]], Decision]
"""Run, observed jobs, now, and by name the jobs that could not be made: the decision takes them for not there."""

WORKERS = 16
"""Runs that are looked at at once; of one namespace a quarter as many (see workqueue)."""

CONFLICTS = 2
"""Conflicts in a row after which a key is looked at again at once; from the next one on, after pauses."""


class Conflict(Exception):
    """The run, or what was observed of it, changed since it was read; look again."""


class Runs(Protocol):
    """Where runs are kept. A key is `namespace/name`."""

    async def keys(self) -> list[str]:
        """Every run there is."""
        ...

    async def get(self, key: str) -> CompressionRun | None:
        """The run as it is now, or None where it is gone."""
        ...

    async def write_status(self, run: CompressionRun, status: CompressionRunStatus) -> CompressionRun:
        """Store `status` on the run; raises Conflict where its resourceVersion is no longer `run`'s."""
        ...


class Listener(Protocol):
    """Who wants to know what the controller does. Called between awaits: it must return at once."""

    def pass_succeeded(self, run: CompressionRun, decision: Decision) -> None:
        """A pass over `run` went through; its status is what is stored now."""
        ...

    def report_event(self, run: CompressionRun, event: RunEvent) -> None:
        """Something worth telling about `run`."""
        ...

    def pass_failed(self, key: str, error: Exception, consecutive: int, *, in_status: bool) -> None:
        """A pass failed, for the `consecutive`-th time in a row; it is tried again after a pause.

        `in_status`: the pass went through nevertheless, and the status says what came of it, or will.
        """
        ...


@dataclass(frozen=True)
class Backoff:
    """Pause after the n-th error in a row of one key: initial * 2^(n-1), at most `limit` seconds."""

    initial: float = 0.2
    limit: float = 15.0

    def seconds(self, consecutive: int) -> float:
        # The exponent is bounded: 2.0 ** 2000 would overflow.
        return min(self.limit, self.initial * 2.0 ** min(consecutive - 1, 30))


@dataclass(frozen=True)
class _Outcome:
    """What came of a pass."""

    again: float | None = None  # seconds after which to look again, if nothing happens before
    problem: Exception | None = None
    in_status: bool = False  # whether it went through, and the status tells the problem


class Controller:
    """Keeps runs reconciled. `enqueue` says that a run may have changed; a lost call costs one resync period."""

    def __init__(
        self,
        runs: Runs,
        backend: Backend,
        listener: Listener,
        *,
        reconcile: Reconcile,
        now: Callable[[], datetime],
        workers: int = WORKERS,
        resync_seconds: float = 60.0,
        backoff: Backoff | None = None,
        observe_seconds: Callable[[float], None] | None = None,
        least_pause: Callable[[Exception], float] = lambda _: 0.0,
        is_outage: Callable[[Exception], bool] = lambda _: False,
        note_failed_deletions: Callable[[str, Mapping[str, Exception]], None] = lambda key, errors: None,
        note_success: Callable[[str], None] = lambda key: None,
    ) -> None:
        """`observe_seconds` is given the seconds that each pass took. `least_pause` says how many an error asks to wait
        at least, and `is_outage` whether the next job would fare no better than the one that could not be made.
        `note_failed_deletions` is given, after each pass over a key that went through, the jobs that could not be
        deleted, by name, and why; `note_success` each key whose pass failed in nothing.
        """
        self._runs = runs
        self._backend = backend
        self._listener = listener
        self._reconcile = reconcile
        self._now = now
        self._workers = workers
        self._resync_seconds = resync_seconds
        self._backoff = backoff or Backoff()
        self._queue = WorkQueue(workers)
        self._errors: dict[str, int] = {}
        self._conflicts: dict[str, int] = {}
        self._observe_seconds = observe_seconds
        self._least_pause = least_pause
        self._is_outage = is_outage
        self._note_failed_deletions = note_failed_deletions
        self._note_success = note_success

    @property
    def queue_depth(self) -> int:
        """Runs that wait for a worker."""
        return len(self._queue)

    def enqueue(self, key: str) -> None:
        """Look at this run again."""
        self._queue.add(key)

    async def run(self) -> None:
        """Work until `stop`; workers finish the pass they are in."""
        resync = asyncio.create_task(self._resync(), name="resync")
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(self._workers):
                    group.create_task(self._work(), name=f"worker-{number}")
        finally:
            resync.cancel()
            await asyncio.gather(resync, return_exceptions=True)

    def stop(self) -> None:
        """Start no more passes; `run` returns when those under way have ended."""
        self._queue.close()

    async def _resync(self) -> None:
        while True:
            try:
                for key in await self._runs.keys():
                    self._queue.add(key, routine=True)
            except Exception as error:
                logger.warning("cannot list the runs, trying again in %g s: %s", self._resync_seconds, error)
            await asyncio.sleep(self._resync_seconds)

    async def _work(self) -> None:
        while True:
            try:
                key = await self._queue.get()
            except QueueClosed:
                return
            began = time.perf_counter()
            try:
                await self._process(key)
            finally:
                self._queue.done(key)
                if self._observe_seconds is not None:
                    self._observe_seconds(time.perf_counter() - began)
            # A pass that finds nothing to do waits for nothing: a queue of such must not hold up what the watches tell.
            await asyncio.sleep(0)

    async def _process(self, key: str) -> None:
        try:
            outcome = await self._reconcile_run(key)
        except Conflict as conflict:
            self._retry_after_conflict(key, conflict)
            return
        except Exception as error:
            # A worker must outlive any one run's problem.
            outcome = _Outcome(problem=error)
        self._conflicts.pop(key, None)
        if outcome.again is not None:
            self._queue.add_after(key, outcome.again)
        if outcome.problem is None:
            self._errors.pop(key, None)
            self._note_success(key)
            return
        count = self._errors[key] = self._errors.get(key, 0) + 1
        self._queue.add_after(key, max(self._backoff.seconds(count), self._least_pause(outcome.problem)))
        self._listener.pass_failed(key, outcome.problem, count, in_status=outcome.in_status)

    def _retry_after_conflict(self, key: str, conflict: Conflict) -> None:
        """Nothing is wrong: somebody else wrote first. What was done is found again by observing; at once, unless it
        goes on like this.
        """
        count = self._conflicts[key] = self._conflicts.get(key, 0) + 1
        if count <= CONFLICTS:
            self._queue.add(key)
            return
        seconds = self._backoff.seconds(count - CONFLICTS)
        logger.warning("%d conflicts in a row, looking again in %g s: %s", count, seconds, conflict, extra={"run": key})
        self._queue.add_after(key, seconds)

    async def _reconcile_run(self, key: str) -> _Outcome:
        """One pass over one run. What cannot be made or deleted holds up nothing else."""
        run = await self._runs.get(key)
        if run is None:
            self._note_failed_deletions(key, {})
            return _Outcome()  # its jobs go with it, by owner reference
        observed = await self._backend.observe(run)
        # A status must not tell of a job that could not be made, and a job must not go before the status tells what
        # became of it. A crash in between is harmless: the next pass observes the jobs and decides the same.
        decision, unmade = await self._create_jobs(run, observed)
        if decision.status != run.status:
            run = await self._runs.write_status(run, decision.status)
        for event in decision.events:
            self._listener.report_event(run, event)
        failed_deletions: dict[str, Exception] = {}
        for action in decision.actions:
            if isinstance(action, DeleteJob):
                try:
                    if await self._backend.delete(run, action.name):
                        self._listener.report_event(run, _deleted(action))
                except Exception as error:
                    failed_deletions[action.name] = error
        self._note_failed_deletions(key, failed_deletions)
        self._listener.pass_succeeded(run, decision)
        problems = list((failed_deletions or unmade).values())
        # Whoever asks for the longest pause means all requests.
        problem = max(problems, key=self._least_pause, default=None)
        return _Outcome(decision.look_again_seconds, problem, in_status=True)

    async def _create_jobs(
        self, run: CompressionRun, observed: Sequence[ObservedJob]
    ) -> tuple[Decision, Mapping[str, Exception]]:
        """Make the jobs that are wanted. Returns what is decided given those that cannot be made, and these by name;
        their places may go to others. Raises Conflict.
        """
        now, made = self._now(), set[str]()
        unmade: dict[str, Exception] = {}
        hopeless: Exception | None = None
        decision = self._reconcile(run, observed, now, unmade)
        while wanted := [job for job in _wanted(decision) if job.name not in made and job.name not in unmade]:
            refused = len(unmade)
            for job in wanted:
                error = hopeless or await self._make(run, job)
                if error is None:
                    made.add(job.name)
                    continue
                unmade[job.name] = error
                hopeless = error if self._is_outage(error) else None
            if len(unmade) > refused:
                decision = self._reconcile(run, observed, now, unmade)
        return decision, unmade

    async def _make(self, run: CompressionRun, job: Job) -> Exception | None:
        try:
            await self._backend.create(run, job)
        except Conflict:
            raise
        except Exception as error:
            return error
        return None


def _deleted(action: DeleteJob) -> RunEvent:
    message = f"{action.step}: job {action.name} is deleted: {action.reason}"
    return RunEvent("Normal", "JobDeleted", message, action.step, action.name)


def _wanted(decision: Decision) -> list[Job]:
    return [action.job for action in decision.actions if isinstance(action, CreateJob)]
