"""`python -m compression_pipeline PHASE`: cached, or wait, or run; then the termination message and the exit code."""

import os
import shutil
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compression_pipeline.adoption import Adoption
from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import CONFIG_VARIABLE, PHASES, ExitClass, JobConfig, Phase, Termination
from compression_pipeline.errors import Interrupted, MissingArtifact, PhaseError, UserError
from compression_pipeline.events import Events
from compression_pipeline.faults import classify
from compression_pipeline.machine import adopt_orphans, oom_kills
from compression_pipeline.redaction import Redactor, guarded
from compression_pipeline.store.published import Published
from compression_pipeline.store.trust import Trust

from . import outcome, termination
from .heartbeat import BEAT_SECONDS, Heartbeat
from .ranks import Ranks, Rendezvous, environment
from .signals import Signals

WAITING_SECONDS = 60.0
"""Between two lines that say that the job still waits: less than any deadline on a silent job."""

LOST_PEER_SECONDS = 15.0
"""What ranks get to end by themselves once one of them is lost; then they are killed, for they may hang on it."""

PORT_RETRIES = 3


def main(arguments: Sequence[str], own: Mapping[str, str] = os.environ, *, fork: bool = False) -> int:
    """Run one phase; returns the exit code (see `ExitClass`). No secret of `own` is in what the job says.

    `fork`: a single rank is forked of this process, which has imported what it needs, instead of started anew.
    """
    redactor = Redactor.of(own)
    with guarded(redactor):
        return _run(arguments, own, redactor, fork)


def _run(arguments: Sequence[str], own: Mapping[str, str], redactor: Redactor, fork: bool) -> int:
    path = termination.path_of(own)
    try:
        phase, job = _job(arguments, own)
        signals = Signals(own)
        ended = _Launcher(phase, job, own, signals, fork).run()
    except Exception as error:
        fault = classify(error)
        if not isinstance(error, PhaseError):
            traceback.print_exc()
        missing = [fault.artifact] if isinstance(fault, MissingArtifact) else []
        ended = Termination.model_validate({"class": fault.exit_class, "message": str(fault), "missing": missing})
    ended = ended.model_copy(update={"message": redactor.text(ended.message)})
    if ended.message:
        name = arguments[0] if arguments else "compression"
        sys.stderr.write(f"{name}: {ended.exit_class.value}: {ended.message}\n")
    termination.write(ended, path)
    return ended.exit_class.code


def _job(arguments: Sequence[str], own: Mapping[str, str]) -> tuple[Phase, JobConfig]:
    phases = ", ".join(phase.value for phase in Phase)
    if len(arguments) != 1 or arguments[0] not in set(Phase):
        raise UserError(f"usage: python -m compression_pipeline PHASE, one of {phases}")
    phase = Phase(arguments[0])
    if not own.get(CONFIG_VARIABLE):
        raise UserError(
            f"the environment variable {CONFIG_VARIABLE} is missing; it holds the job's configuration as JSON"
        )
    try:
        return phase, PHASES[phase].job.model_validate_json(own[CONFIG_VARIABLE])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        if first["type"] == "extra_forbidden":
            raise UserError(
                f"{CONFIG_VARIABLE}: {where}: this image does not know it, so it is older than the operator: set "
                "spec.jobTemplate.image to a newer one, or leave the field out of the run"
            ) from error
        raise UserError(f"{CONFIG_VARIABLE}: {where}: {first['msg']}") from error


class _Launcher:
    def __init__(self, phase: Phase, job: JobConfig, own: Mapping[str, str], signals: Signals, fork: bool) -> None:
        self._phase = phase
        self._job = job
        self._own = own
        self._signals = signals
        self._fork = fork
        self._rendezvous = Rendezvous.of(phase, job, own)
        self._layout = self._rendezvous.layout
        self._events = Events(silent=not self._rendezvous.leads)
        self._store = Store(Path(job.store), trust=Trust.of(job), passed_over=self._events.warning)
        # Of the node with rank 0 alone it matters: the other nodes' ranks are told the folder by rank 0.
        self._launch = uuid.uuid4().hex

    def run(self) -> Termination:
        folder = self._store.attempt_path(self._job.fingerprint, self._job.attempt, self._launch)
        turn = self._store.work_folder(self._job.artifact_key)
        heartbeat = Heartbeat(turn, self._name(), token=self._launch, probe=folder)
        adoption = Adoption(
            self._store,
            self._events,
            owns=lambda: self._rendezvous.leads and heartbeat.mine,
            # A long look must not let the step go, where it is ours.
            meanwhile=lambda: heartbeat.beat() if self._rendezvous.leads and heartbeat.mine else None,
        )
        done = False
        try:
            cached = adoption.sound(self._published())
            ended = self._adopt(cached) if cached is not None else self._make(heartbeat, adoption)
            done = ended.exit_class is ExitClass.DONE
            return ended
        finally:
            if self._rendezvous.leads:
                self._tidy(heartbeat, folder, done=done)

    def _make(self, heartbeat: Heartbeat, adoption: Adoption) -> Termination:
        if self._rendezvous.leads:
            self._store.attempt_folder(self._job.fingerprint, self._job.attempt, self._launch)
        cached = self._wait_for_turn(heartbeat, adoption)
        if cached is not None:
            return self._adopt(cached)
        if self._rendezvous.leads:
            self._store.remove_drafts(self._job.fingerprint)
            self._check_inputs(adoption)
        ended = self._run_ranks(heartbeat)
        if ended.exit_class in (ExitClass.TRANSIENT, ExitClass.INTERRUPTED):
            # Another job may have made it meanwhile: one that took this step over, while this one was paused.
            cached = adoption.sound(self._published())
        return ended if cached is None else self._adopt(cached)

    def _check_inputs(self, adoption: Adoption) -> None:
        """Say which inputs nobody vouches for. Where only what is known is taken, read all of each: no note of an
        earlier look is believed then. Raises MissingArtifact.
        """
        for name in self._job.inputs:
            if self._store.trust.known_only:
                artifact = self._store.open(name)
                if (file := adoption.fault(artifact)) is not None:
                    damaged = f"{artifact.path / file} is not what was published; the step that makes {name}"
                    raise MissingArtifact(name, f"{damaged} must run again")
            elif self._job.run_uid and name not in self._job.expected:
                self._events.warning(f"an older version made {name} and told no digest of it: it is taken as it stands")

    def _tidy(self, heartbeat: Heartbeat, folder: Path, *, done: bool) -> None:
        """Let others have the step. Once it is published, remove what its attempts left; a job that still works on it
        finds the artifact when it misses its files.
        """
        with suppress(OSError):
            if not self._store.earlier_attempts(self._job.fingerprint):
                pass
            elif not done and self._published() is None:
                folder.rmdir()  # where nothing is in it: the job has only waited
            elif heartbeat.claim() is None:
                self._store.remove_attempts(self._job.fingerprint)
            else:
                shutil.rmtree(folder)
        heartbeat.release()

    def _name(self) -> str:
        """What this job's launchers know each other by, on whichever node: its run's name is only for people."""
        job = self._job
        return "/".join([job.run, job.step, str(job.attempt), *([job.run_uid] if job.run_uid else [])])

    def _published(self) -> Artifact | None:
        return self._store.find_published(self._phase.value, self._job.fingerprint, self._job.key)

    def _adopt(self, artifact: Artifact) -> Termination:
        told, fingerprint = self._store.use(artifact).manifest.result, self._job.fingerprint
        now: dict[str, Any] = {"cached": True, "digest": artifact.digest}
        if self._job.key is not None and self._rendezvous.leads and self._store.published(fingerprint) is None:
            with suppress(OSError):  # lost, and found again in the artifact
                self._store.record_published(fingerprint, Published(artifact=artifact.name, result=told))
        result: dict[str, Any] = told | now
        self._events.info(f"{artifact.name} is published already")
        self._events.result(result)
        return Termination.model_validate({"class": ExitClass.DONE, "result": result})

    def _wait_for_turn(self, heartbeat: Heartbeat, adoption: Adoption) -> Artifact | None:
        """Until no other job works on this step. What that one published, if it did.

        On the nodes without rank 0: until the node with it has its turn. What they find damaged is to them as if it
        weren't there: that node sets it aside. Raises Interrupted.
        """
        say_again = 0.0
        while True:
            if self._rendezvous.leads:
                other = heartbeat.claim()
            else:
                holder = heartbeat.holder_unless_me()
                other = None if holder is not None and holder.job == heartbeat.me.job else holder or heartbeat.me
            cached = adoption.sound(self._published())
            if other is None or cached is not None:
                return cached
            if time.monotonic() >= say_again:
                self._events.info(f"waits for {other}, which makes the same artifact")
                say_again = time.monotonic() + WAITING_SECONDS
            self._signals.wait(BEAT_SECONDS / 5)
            if self._signals.reason is not None:
                raise Interrupted(self._signals.reason)

    def _run_ranks(self, heartbeat: Heartbeat) -> Termination:
        """Raises Interrupted where the job was told to stop before it has started any."""
        self._signals.wait(0)  # whether the parent is gone is not told by a signal
        if self._signals.reason is not None:
            raise Interrupted(self._signals.reason)
        adopt_orphans()
        for _ in range(PORT_RETRIES):
            folder = self._outcome_folder()
            try:
                ended, port_taken = self._attempt(heartbeat, folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            if not port_taken or self._layout.nodes > 1 or self._signals.stopping:
                break
            self._events.warning("the port of the ranks was taken meanwhile; tries another")
        return ended

    def _outcome_folder(self) -> Path:
        """Not in the store where that can be helped: a full store must not keep a rank from saying so."""
        try:
            return Path(tempfile.mkdtemp(prefix="compression-outcomes-"))
        except OSError:
            attempt = self._store.attempt_folder(self._job.fingerprint, self._job.attempt)
            return Path(tempfile.mkdtemp(prefix="outcomes-", dir=attempt))

    def _attempt(self, heartbeat: Heartbeat, folder: Path) -> tuple[Termination, bool]:
        """Run the ranks to their end. The verdict, and whether nothing but a taken port was in the way."""
        killed_before = oom_kills()
        told = environment(self._own, self._job, self._phase, self._rendezvous, launch=self._launch, outcomes=folder)
        ranks = Ranks(self._phase, self._rendezvous, told, fork=self._fork)
        stop_at: float | None = None  # when the grace period is over
        lost_at: float | None = None  # when peers of a lost rank are killed
        survivors: frozenset[int] = frozenset()  # ranks that still ran when another was lost
        lost_to: str | None = None
        grace_over = False
        met = True  # whether ranks may have something to keep
        began = time.monotonic()
        while (code := ranks.poll()) is None:
            now = time.monotonic()
            if stop_at is None and (self._signals.stopping or lost_to is not None):
                # Who waits for other nodes hears no signal.
                met = self._layout.nodes == 1 or bool(outcome.read(folder))
                stop_at = now + (self._job.grace_period_seconds if met else 0)
                ranks.terminate()
            if lost_at is None and self._layout.per_node > 1 and outcome.failed(seen := outcome.read(folder)):
                lost_at = now + LOST_PEER_SECONDS
                survivors = outcome.running(seen)
            grace_over = stop_at is not None and now >= stop_at
            if grace_over or (lost_at is not None and now >= lost_at):
                code = ranks.kill()
                break
            if self._rendezvous.leads and lost_to is None and heartbeat.due:
                lost_to = self._beat(heartbeat)
            self._signals.wait(min(1.0, *(at - now for at in (stop_at, lost_at) if at is not None), BEAT_SECONDS))
        outcomes = outcome.read(folder)
        ranks.kill()
        if self._rendezvous.leads and lost_to is None and code != 0:
            lost_to = self._beat(heartbeat)  # a paused job's ranks may have found out first
        if lost_to is not None:
            return Termination.model_validate({"class": ExitClass.INTERRUPTED, "message": lost_to}), False
        ended = outcome.judge(
            outcome.without_killed(outcomes, survivors),
            code,
            expected=self._layout.per_node,
            stopping=self._signals.stopping,
            killed=grace_over and met,
            oom_kills=oom_kills() - killed_before,
            unmet=self._rendezvous.unmet(time.monotonic() - began),
        )
        told = self._signals.reason is not None and not (grace_over and met)
        if told and ended.exit_class is ExitClass.INTERRUPTED:
            ended = ended.model_copy(update={"message": self._signals.reason})
        return ended, ended.exit_class is ExitClass.TRANSIENT and any(o.port_taken for o in outcomes)

    def _beat(self, heartbeat: Heartbeat) -> str | None:
        """Say that this job is alive. A sentence where the step has gone to another one."""
        gone = not heartbeat.there
        taker = heartbeat.beat()
        if taker is not None:
            return f"{taker} took over this step, for this job's heartbeat had stopped"
        if gone and self._published() is not None:
            return "another job took over this step, for this job's heartbeat had stopped, and has ended it"
        return None
