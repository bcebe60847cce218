"""One `compression run`: the controller over one work directory, from the first look to rest or interruption."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from datetime import datetime
from typing import cast

from compression_operator.api.run import CompressionRun
from compression_operator.api.status import RunPhase
from compression_operator.core.controller import Backoff, Controller, Reconcile
from compression_operator.core.jobs import Decision, RunEvent
from compression_operator.local.backend import LocalBackend, Place
from compression_operator.local.runs import LocalRuns
from compression_operator.local.workdir import Workdir

from .view import View

FATAL_ERRORS = 5
"""Errors in a row after which the command gives up: nothing that passes lasts that long on one machine."""

TOLD = frozenset({"StepOutdated", "StepInterrupted", "ArtifactMissing"})
"""Notices that are worth a line; what the others tell, the view shows of the status."""

INTERRUPTED = 130
"""Exit code of a run that was told to stop."""


class Session:
    """Runs the controller until the run is at rest. Also the controller's listener."""

    def __init__(
        self,
        workdir: Workdir,
        run: CompressionRun,
        place: Place,
        view: View,
        *,
        reconcile: Reconcile,
        now: Callable[[], datetime],
        look_seconds: float = 1.0,
    ) -> None:
        """`look_seconds`: how often progress is looked at. What ends is seen at once."""
        self._runs = LocalRuns(workdir, run)
        self._backend = LocalBackend(place, now=now, wake=lambda _: self._enqueue(), warned=self._warn)
        self._view = view
        self._look_seconds = look_seconds
        self._key = run.metadata.key
        self._controller = Controller(
            self._runs,
            self._backend,
            self,
            reconcile=reconcile,
            now=now,
            workers=1,
            backoff=Backoff(initial=0.2, limit=5.0),
        )
        self._rest = asyncio.Event()
        self._passed = asyncio.Event()
        self._fault: Exception | None = None
        self._interrupted = False
        self._hard = False
        self._warnings: set[tuple[str, str]] = set()

    @property
    def run_now(self) -> CompressionRun:
        """The run as it is stored."""
        return self._runs.run

    async def run(self) -> int:
        """Run to rest; returns 0 where the run succeeded, 1 where not, 130 where the user interrupted it.

        Raises the error that kept the controller from doing its work, once its jobs have ended.
        """
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signals.append(signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, self._interrupt)
        work = asyncio.create_task(self._controller.run(), name="controller")
        tick = asyncio.create_task(self._enqueue_regularly(), name="tick")
        rest = asyncio.create_task(self._rest.wait(), name="rest")
        try:
            await asyncio.wait((rest, work), return_when=asyncio.FIRST_COMPLETED)
            if work.done() and self._fault is None:
                self._fault = _cause(work)  # nobody would ever say that the run is at rest
            if self._fault is not None:
                # Who has given up starts nothing more while what runs comes to its end.
                tick.cancel()
                self._controller.stop()
                await asyncio.gather(work, return_exceptions=True)
            await self._stop_jobs()
        finally:
            tick.cancel()
            rest.cancel()
            self._controller.stop()
            await asyncio.gather(work, tick, rest, return_exceptions=True)
            for number in signals:
                loop.remove_signal_handler(number)
        if self._interrupted:
            return INTERRUPTED
        if self._fault is not None:
            raise self._fault
        return 0 if self.run_now.status.phase is RunPhase.SUCCEEDED else 1

    async def _stop_jobs(self) -> None:
        """No process is left behind, and the status tells how they ended."""
        if self._hard:
            self._backend.kill()
        elif self._fault is not None:
            self._backend.release()
        await self._backend.close()
        if self._interrupted and self._fault is None:
            self._passed.clear()
            self._enqueue()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._passed.wait(), 5)

    async def _enqueue_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            self._enqueue()

    def _enqueue(self) -> None:
        self._controller.enqueue(self._key)

    def _interrupt(self) -> None:
        if not self._interrupted:
            self._interrupted = True
            self._runs.suspended = True
            self._enqueue()
            self._view.print_line("stopping: running steps write a checkpoint; once more to stop at once")
        else:
            self._hard = True
            self._backend.kill()
            self._rest.set()

    def _warn(self, step: str, message: str) -> None:
        """Tell what a job warns of, once: every attempt may find it anew."""
        if (step, message) not in self._warnings:
            self._warnings.add((step, message))
            self._view.print_line(f"{step}: warning: {message}")

    # -- the controller's listener ----------------------------------------------------------------------------------

    def pass_succeeded(self, run: CompressionRun, decision: Decision) -> None:
        self._passed.set()
        self._view.update(run)
        settled = run.status.phase in (RunPhase.SUCCEEDED, RunPhase.FAILED, RunPhase.SUSPENDED)
        if settled and not decision.actions and run.status.observed_generation == run.metadata.generation:
            self._rest.set()

    def report_event(self, run: CompressionRun, event: RunEvent) -> None:
        if event.reason in TOLD:
            self._view.print_line(event.message)

    def pass_failed(self, key: str, error: Exception, consecutive: int, *, in_status: bool) -> None:
        if consecutive == 1:
            self._view.print_line(f"trying again: {error}")
        if consecutive >= FATAL_ERRORS:
            self._fault = error
            self._rest.set()


def _cause(work: asyncio.Task[None]) -> Exception:
    """What ended the controller, which ends by itself only where it meets what it cannot handle."""
    error = work.exception()
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error if isinstance(error, Exception) else RuntimeError("the controller has ended")
