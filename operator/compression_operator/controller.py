"""The loop: a queue of keys -> observe -> reconcile -> apply -> one status write. The same locally and on a cluster."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from .api.run import CompressionRun
from .api.status import CompressionRunStatus
from .jobs import Backend, CreateJob, Decision, DeleteJob, Notice, ObservedJob
from .workqueue import QueueClosed, WorkQueue

logger = logging.getLogger(__name__)

Reconcile = Callable[[CompressionRun, Sequence[ObservedJob], datetime], Decision]


class Conflict(Exception):
    """The run changed since it was read; read it again."""


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

    def passed(self, run: CompressionRun, decision: Decision) -> None:
        """A pass over `run` went through; its status is what is stored now."""
        ...

    def noticed(self, run: CompressionRun, notice: Notice) -> None:
        """Something worth telling about `run`."""
        ...

    def failed(self, key: str, error: Exception, consecutive: int) -> None:
        """A pass raised, for the `consecutive`-th time in a row; it is tried again after a pause."""
        ...


@dataclass(frozen=True)
class Backoff:
    """Pause after the n-th error in a row of one key: initial * 2^(n-1), at most `limit` seconds."""

    initial: float = 0.2
    limit: float = 60.0

    def seconds(self, consecutive: int) -> float:
        # The exponent is bounded: 2.0 ** 2000 would overflow.
        return min(self.limit, self.initial * 2.0 ** min(consecutive - 1, 30))


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
        workers: int = 4,
        resync_seconds: float = 60.0,
        backoff: Backoff | None = None,
        timed: Callable[[float], None] | None = None,
        patience: Callable[[Exception], float] = lambda _: 0.0,
    ) -> None:
        """`timed` is told the seconds that each pass took; `patience` says how many an error asks to wait at least."""
        self._runs = runs
        self._backend = backend
        self._listener = listener
        self._reconcile = reconcile
        self._now = now
        self._workers = workers
        self._resync_seconds = resync_seconds
        self._backoff = backoff or Backoff()
        self._queue = WorkQueue()
        self._errors: dict[str, int] = {}
        self._timed = timed
        self._patience = patience

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
                    self._queue.add(key)
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
                await self._pass(key)
            finally:
                self._queue.done(key)
                if self._timed is not None:
                    self._timed(time.perf_counter() - began)

    async def _pass(self, key: str) -> None:
        try:
            again = await self._look(key)
        except Conflict:
            # Nothing is wrong: somebody else wrote first. What was done is found again by observing.
            self._queue.add(key)
            return
        except Exception as error:
            # The only place that may catch everything: a worker must outlive any one run's trouble.
            count = self._errors[key] = self._errors.get(key, 0) + 1
            self._queue.add_after(key, max(self._backoff.seconds(count), self._patience(error)))
            self._listener.failed(key, error, count)
            return
        self._errors.pop(key, None)
        if again is not None:
            self._queue.add_after(key, again)

    async def _look(self, key: str) -> float | None:
        """One pass over one run; returns the seconds after which to look again, if nothing happens before."""
        run = await self._runs.get(key)
        if run is None or run.metadata.deletion_timestamp is not None:
            return None  # its jobs go with it, by owner reference
        observed = await self._backend.observe(run)
        decision = self._reconcile(run, observed, self._now())
        # A status must not tell of a job that could not be made, and a job must not go before the status tells what
        # became of it. A crash in between is harmless: the next pass observes the jobs and decides the same.
        for action in decision.actions:
            if isinstance(action, CreateJob):
                await self._backend.create(run, action.job)
        if decision.status != run.status:
            run = await self._runs.write_status(run, decision.status)
        for notice in decision.notices:
            self._listener.noticed(run, notice)
        for action in decision.actions:
            if isinstance(action, DeleteJob):
                await self._backend.delete(run, action.name)
        self._listener.passed(run, decision)
        return decision.look_again_seconds
