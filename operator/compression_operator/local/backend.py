"""The local backend: a job is a process of this machine, and everything about it is files."""

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from compression_operator.api.run import CompressionRun
from compression_operator.core.jobs import Job, JobState, ObservedJob, Wait, WaitReason
from compression_operator.joblog.lines import ProgressReader
from compression_pipeline.config import PHASES, TERMINATION_VARIABLE, ExitClass, Termination
from compression_pipeline.config.schemes import manifest_roots

from . import concurrency, machine, processes
from . import disk_space as space
from .jobfiles import ExitRecord, JobFolder, JobRecord, ProcessRecord
from .outcome import ending
from .processes import ProcessId
from .running_time import RunningTime
from .starting import Child, Starter, kill, release

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "compression_pipeline")
MARGIN_SECONDS = 10
"""What a job has beyond its grace period, to say how it ended."""

LOOK_SECONDS = 0.2
"""How often a process that isn't ours to wait for is looked at."""


@dataclass(frozen=True)
class Place:
    """Where and with what local jobs run."""

    jobs: Path  # one folder per job
    store: Path
    source_root: Path  # what `file:` sources are relative to
    aside: Collection[Path]  # what is no part of a source that it lies in: the run's own files, resolved
    environment: Mapping[str, str]  # of this process; jobs get what machine.environment() lets through
    processors: int
    gpus: tuple[str, ...]
    command: Sequence[str] = COMMAND  # the phase is appended


@dataclass
class _Waiting:
    """A job that waits for GPUs."""

    run: CompressionRun
    job: Job
    folder: JobFolder


class LocalBackend:
    """Runs jobs as processes. Use it within one event loop, and `close` it at the end."""

    def __init__(
        self,
        place: Place,
        *,
        now: Callable[[], datetime],
        wake: Callable[[CompressionRun], None],
        warned: Callable[[str, str], None] = lambda step, message: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake` is called when a job of the run has ended, `warned` with a step and what a job of it warns of that was
        started here. `monotonic`: a clock that nobody sets, in seconds.
        """
        self._place = place
        self._now = now
        self._warned = warned
        self._monotonic = monotonic
        self._wake = wake
        self._records: dict[str, JobRecord] = {}
        self._ended: dict[str, ObservedJob] = {}
        self._progress: dict[str, ProgressReader] = {}
        self._running_times: dict[str, RunningTime] = {}  # of running jobs
        self._starter = Starter(place.command, fork=tuple(place.command) == COMMAND)
        self._children: dict[str, Child] = {}
        self._waiting: deque[_Waiting] = deque()
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._late: Callable[[Child], None] | None = None  # what is done to a job that starts after `kill` or `release`
        self._gpus_of: dict[str, tuple[str, ...]] = {}  # of jobs that start or run
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._watches: set[asyncio.Task[None]] = set()

    # -- the protocol ---------------------------------------------------------------------------------------------

    async def observe(self, run: CompressionRun) -> list[ObservedJob]:
        """Every job of the run that has not been deleted, or still runs, be it without its folder."""
        found: list[ObservedJob] = []
        for folder in self._folders():
            if (record := self._record(folder)) is None:
                continue
            deleted = folder.deleted
            job = self._ended.get(folder.name) or self._observe(run, folder, record, deleting=deleted)
            if deleted and not job.alive:
                continue
            found.append(job)
        return found

    async def create(self, run: CompressionRun, job: Job) -> None:
        """Start the job's process, now or when there are GPUs for it; an existing job of the same name is the same job.

        Raises OSError where its files cannot be written, and RuntimeError where a job of that name is still ending.
        """
        folder = JobFolder(self._place.jobs / job.name)
        existing = self._record(folder)
        if existing is not None and not folder.deleted:
            return
        if existing is not None:
            if folder.exit() is None:
                raise RuntimeError(f"job {job.name} was deleted and its processes are still ending")
            folder.set_aside()
            for known in (self._records, self._ended, self._progress, self._running_times):
                known.pop(job.name, None)
        folder.create(JobRecord.of(job, run_uid=run.metadata.uid, created=self._now()))
        lacking = self._shortage(run, job)
        if lacking is not None:
            self._fail(folder, ExitClass.USER_ERROR, lacking)
            return
        self._waiting.append(_Waiting(run, job, folder))
        self._start_waiting()
        if (starting := self._starting.get(job.name)) is not None and not self._starter.imports_first:
            await asyncio.wait({starting})

    async def delete(self, run: CompressionRun, name: str) -> bool:
        """Mark the job as deleted and let its processes end; its log stays in its folder. Whether there was one."""
        folder = JobFolder(self._place.jobs / name)
        record = self._record(folder)
        if record is None:
            return False
        folder.mark_deleted()
        for waiting in [w for w in self._waiting if w.folder.name == name]:
            self._waiting.remove(waiting)
            self._settle(folder, None)
        if name not in self._ended:
            self._observe(run, folder, record, deleting=True)  # stops it
        return True

    # -- the end --------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """End every process of every job at once (SIGKILL), and start no more."""
        self._late = kill
        self._starter.kill()
        for folder in self._folders():
            if folder.exit() is None:
                self._kill(folder)

    def release(self) -> None:
        """Let every job end at a checkpoint, as it would if this process were gone; none that waits is started."""
        self._late = release
        self._waiting.clear()
        for child in self._children.values():
            release(child)

    async def close(self) -> None:
        """Wait until no process of any job runs; delete, release or kill them first."""
        while tasks := [*self._starting.values(), *self._watches, *self._stopping.values()]:
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._starter.close()

    # -- observing ------------------------------------------------------------------------------------------------

    def _folders(self) -> list[JobFolder]:
        """Those of all jobs, and of what runs here though somebody removed its folder; jobs set aside have ended."""
        there = {path.name for path in self._place.jobs.iterdir()} if self._place.jobs.is_dir() else set[str]()
        return [JobFolder(self._place.jobs / name) for name in sorted(there | self._children.keys()) if "~" not in name]

    def _record(self, folder: JobFolder) -> JobRecord | None:
        if folder.name not in self._records:
            record = folder.record()
            if record is None:
                return None
            self._records[folder.name] = record
        return self._records[folder.name]

    def _observe(self, run: CompressionRun, folder: JobFolder, record: JobRecord, *, deleting: bool) -> ObservedJob:
        common: dict[str, Any] = {
            "name": folder.name,
            "step": record.step,
            "fingerprint": record.fingerprint,
            "attempt": record.attempt,
            "ours": record.run_uid == run.metadata.uid,
            "deleting": deleting,
            "created": record.created,
        }
        if folder.name in self._starting:
            return ObservedJob(**common, state=JobState.PENDING, alive=True)
        if any(waiting.folder.name == folder.name for waiting in self._waiting):
            why = "waits for free GPUs"
            common["waiting"] = Wait(WaitReason.UNSCHEDULABLE, why, told_from=record.created, counts_from=None)
            return ObservedJob(**common, state=JobState.PENDING, alive=True, message=why)
        process = folder.process()
        if process is not None:
            common["started"] = process.started
        if folder.exit() is None and self._living(folder, process):
            if deleting or folder.name not in self._children:
                # Deleted, or left behind by a command that was killed: such a job is ending by itself, because its
                # standard input has closed; the grace period holds for it too.
                self._stop(run, folder, record)
            reader = self._read_log(folder)
            running_time = self._running_times.setdefault(folder.name, RunningTime())
            running_time.look(self._monotonic(), reader.last_event, waits=bool(reader.waits))
            common |= running_time.fields(self._now(), process.started if process else record.created)
            common |= {"progress": reader.progress, "message": reader.waits}
            return ObservedJob(**common, state=JobState.RUNNING, alive=True)
        exited = folder.exit() or self._settle(folder, None)
        reader = self._read_log(folder)
        common |= {"last_event": reader.last_event, "progress": reader.progress}
        self._ended[folder.name] = ObservedJob(**common, alive=False, **ending(folder, exited))
        for known in (self._progress, self._running_times):
            known.pop(folder.name, None)
        return self._ended[folder.name]

    def _read_log(self, folder: JobFolder) -> ProgressReader:
        reader = self._progress.setdefault(folder.name, ProgressReader(folder.log))
        reader.update()
        return reader

    def _living(self, folder: JobFolder, process: ProcessRecord | None) -> bool:
        """Whether any process of the job runs, its first one or those it started."""
        if folder.name in self._children or (process is not None and process.id.alive):
            return True
        return bool(self._processes(folder))

    def _processes(self, folder: JobFolder) -> list[ProcessId]:
        return processes.marked(f"{TERMINATION_VARIABLE}={folder.termination_file.absolute()}")

    # -- starting -------------------------------------------------------------------------------------------------

    def _shortage(self, run: CompressionRun, job: Job) -> str | None:
        store = self._place.store
        store.mkdir(parents=True, exist_ok=True)
        needed = space.bytes_needed(run, job, store, source_root=self._place.source_root, aside=self._place.aside)
        return space.shortage(store, needed)

    def _start_waiting(self) -> None:
        """Start every waiting job that there are GPUs for, the oldest first; one that needs none waits for nobody."""
        while self._waiting and self._late is None:
            taken = {name for names in self._gpus_of.values() for name in names}
            free = [name for name in self._place.gpus if name not in taken]
            oldest = self._waiting[0]
            first = next((one for one in self._waiting if not self._gpus_wanted(one.job)), oldest)
            wanted = self._gpus_wanted(first.job)
            if len(free) < wanted:
                return
            self._waiting.remove(first)
            name = first.folder.name
            self._gpus_of[name] = tuple(free[:wanted])
            self._starting[name] = asyncio.create_task(self._start(first, self._gpus_of[name]), name=f"start {name}")
            self._starting[name].add_done_callback(partial(self._started, name))

    def _started(self, name: str, task: asyncio.Task[None]) -> None:
        del self._starting[name]
        if name not in self._children:
            self._gpus_of.pop(name, None)
        if (error := task.exception()) is not None:
            logger.error("cannot start job %s", name, exc_info=error)

    def _gpus_wanted(self, job: Job) -> int:
        return concurrency.ranks(job, min(job.settings.gpus_per_node, len(self._place.gpus)))

    async def _start(self, waiting: _Waiting, gpus: tuple[str, ...]) -> None:
        folder, job = waiting.folder, waiting.job
        config = job.config.model_copy(update=self._filled_in(waiting, gpus))
        environment = machine.environment(
            self._place.environment,
            job.phase,
            config=json.dumps(config.to_json()),
            termination=folder.termination_file.absolute(),
            gpus=gpus,
        )
        environment |= job.variables
        try:
            with folder.log.open("ab") as log:
                ranks = config.processes_per_node
                child = await self._starter.start(job.phase, environment, log, ranks=ranks, gpus=gpus)
        except OSError as error:
            self._fail(folder, ExitClass.TRANSIENT, f"cannot start {self._place.command[0]}: {error.strerror or error}")
            self._wake(waiting.run)
            return
        if child is None:
            return
        self._children[folder.name] = child
        self._progress[folder.name] = ProgressReader(folder.log, warned=partial(self._warned, job.step))
        process = ProcessId.of(child.pid)
        watch = asyncio.create_task(self._watch(waiting.run, folder, child), name=f"watch {folder.name}")
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        if self._late is not None:
            self._late(child)
        if process is not None:  # None: it has ended already
            with contextlib.suppress(OSError):  # on a full disk; a later command finds the processes by their mark
                folder.write_process(ProcessRecord(pid=process.pid, start=process.start, started=self._now()))
        record = self._record(folder)
        if record is not None and folder.deleted:  # while it was being started
            self._stop(waiting.run, folder, record)

    def _filled_in(self, waiting: _Waiting, gpus: tuple[str, ...]) -> dict[str, Any]:
        job = waiting.job
        ranks = len(gpus) or concurrency.ranks(job, job.settings.processes_per_node)
        threads = max(1, self._place.processors // (ranks * concurrency.at_once(waiting.run, job.phase)))
        filled: dict[str, Any] = {
            "run_uid": waiting.run.metadata.uid or None,
            "store": str(self._place.store.absolute()),
            **concurrency.layout(job, ranks),
            "threads": threads,
        }
        if PHASES[job.phase].reads_sources:
            filled["source_roots"] = manifest_roots(self._place.source_root.absolute())
            filled["aside"] = [str(path) for path in self._place.aside]
        return filled

    async def _watch(self, run: CompressionRun, folder: JobFolder, child: Child) -> None:
        code = await child.wait()
        # Whatever outlived the job's first process belongs to nobody now.
        while stragglers := self._processes(folder):
            for process in stragglers:
                processes.kill(process)
            await asyncio.sleep(LOOK_SECONDS)
        self._settle(folder, code)
        del self._children[folder.name]
        self._gpus_of.pop(folder.name, None)
        self._start_waiting()
        self._wake(run)

    # -- ending ---------------------------------------------------------------------------------------------------

    def _fail(self, folder: JobFolder, exit_class: ExitClass, message: str) -> None:
        """Let the job end before it starts."""
        folder.write_termination(Termination.model_validate({"class": exit_class, "message": message}))
        self._settle(folder, exit_class.code)

    def _settle(self, folder: JobFolder, code: int | None) -> ExitRecord:
        """Note that nothing of the job runs any more."""
        ended = self._now() if code is not None else folder.last_change() or self._now()
        exited = ExitRecord(code=code if code is None or code >= 0 else 128 - code, ended=ended)
        try:
            folder.write_exit(exited)
        except OSError as error:
            # The termination message tells more than the code, and nothing of the job is found running next time.
            logger.warning("cannot write %s: %s", folder.path / "exit", error.strerror)
        return exited

    def _stop(self, run: CompressionRun, folder: JobFolder, record: JobRecord) -> None:
        if folder.name not in self._stopping:
            task = asyncio.create_task(self._stop_now(run, folder, record), name=f"stop {folder.name}")
            self._stopping[folder.name] = task
            task.add_done_callback(lambda _: self._stopping.pop(folder.name, None))

    async def _stop_now(self, run: CompressionRun, folder: JobFolder, record: JobRecord) -> None:
        """SIGTERM to the first process, which tells the others; after the grace period SIGKILL to all of them."""
        loop = asyncio.get_running_loop()
        process = folder.process()
        child = self._children.get(folder.name)
        if process is not None:
            processes.terminate(process.id)
        elif child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        deadline = loop.time() + record.grace_period_seconds + MARGIN_SECONDS
        while self._living(folder, process):
            if loop.time() >= deadline:
                self._kill(folder)
            elif process is not None and not process.id.alive and folder.name not in self._children:
                self._kill(folder)  # its first process is gone, so nobody will tell the others
            await asyncio.sleep(LOOK_SECONDS)
        self._wake(run)

    def _kill(self, folder: JobFolder) -> None:
        process = folder.process()
        if process is not None:
            processes.kill_group(process.id)
        if (child := self._children.get(folder.name)) is not None:
            kill(child)
        for straggler in self._processes(folder):
            processes.kill(straggler)
