"""A world of jobs for the tests of the reconciler: what is true, what a listing shows, and what must never happen.

The listing lags: what it shows of a job may be older than the truth, by at most `LAG`, and never goes back in time. It
shows every job that is there, as Backend.observe promises: the operator knows what it made, and one that starts lists.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jobs_kept as kept
from jobs_results import result
from jobs_truth import Truth, adopts, jobs_wanted, leaves, takes
from tests.support.runs import two_students

from compression_operator.api.attempts import Progress
from compression_operator.api.run import RETRY_ANNOTATION, CompressionRun
from compression_operator.api.status import CompressionRunStatus, StepState
from compression_operator.core.conditions import FINISHED
from compression_operator.core.jobs import CreateJob, Decision, DeleteJob, Job, JobState, ObservedJob
from compression_operator.core.reconcile import reconcile
from compression_operator.core.steps import seconds
from compression_pipeline.config import ExitClass, Phase, Termination

LAG = timedelta(seconds=25)
SILENCE = timedelta(seconds=1800)
LATER = 3600
"""Seconds, longer than any pause or wait of a run that goes on: only the time of jobs that have ended is as long."""

START = datetime(2026, 1, 1, tzinfo=UTC)


def manifest(**spec: Any) -> CompressionRun:
    """A run with two students."""
    return two_students().named("demo", uid="uid-1", generation=1).spec(**spec).model()


def student(name: str, distill: dict[str, Any] | None = None, **prune: Any) -> dict[str, Any]:
    return {"name": name, "prune": prune} | ({"distill": distill} if distill else {})


class Violation(AssertionError):
    """Something happened that must never happen."""


@dataclass
class World:
    """A run, its jobs, the store and the clock."""

    run: CompressionRun = field(default_factory=manifest)
    jobs: dict[str, Truth] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    stripped: set[str] = field(default_factory=set)  # of these, the run's own without their labels or ownerReference
    published: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)  # of these, what is gone again
    missed: set[str] = field(default_factory=set)  # what any job did not find
    digests: dict[str, str] = field(default_factory=dict)  # by artifact: of the manifest that stands in the store
    names: set[str] = field(default_factory=set)  # of all jobs ever created
    made: Counter[str] = field(default_factory=Counter)  # by step: creations
    faults: Counter[str] = field(default_factory=Counter)  # by step: passing faults there were at most
    mistakes: dict[str, tuple[int, str | None]] = field(default_factory=dict)  # by step: of which edit and retry
    halted: set[str] = field(default_factory=set)  # jobs that were told to stop by a suspension
    lived: set[str] = field(default_factory=set)  # jobs that the last look was shown twice, and alive by one of these
    real: datetime = START
    skew: timedelta = timedelta(0)  # what the operator's clock is off by

    @property
    def now(self) -> datetime:
        return self.real + self.skew

    @property
    def status(self) -> CompressionRunStatus:
        return self.run.status

    # -- the user -----------------------------------------------------------------------------------------------------

    def edit(self, **spec: Any) -> None:
        """Change the spec, as `kubectl apply` would."""
        merged = {**self.run.spec.to_json(), **spec}
        merged = {name: value for name, value in merged.items() if value is not None}
        body = {**self.run.model_dump(by_alias=True), "spec": merged}
        metadata = self.run.metadata.model_copy(update={"generation": self.run.metadata.generation + 1})
        self.run = CompressionRun.model_validate(body).model_copy(update={"metadata": metadata})

    def annotate(self, key: str, value: str) -> None:
        annotations = {**self.run.metadata.annotations, key: value}
        metadata = self.run.metadata.model_copy(update={"annotations": annotations})
        self.run = self.run.model_copy(update={"metadata": metadata})

    def lose_status(self) -> None:
        self.mistakes.clear()
        self.run = self.run.model_copy(update={"status": CompressionRunStatus()})

    # -- the operator -------------------------------------------------------------------------------------------------

    def listing(self, stale: frozenset[str] = frozenset()) -> list[ObservedJob]:
        """The jobs, those named in `stale` as they were shown last, where that may still be."""
        for name, truth in list(self.jobs.items()):
            if name not in stale or self.real - truth.changed >= LAG:
                truth.shown = None if truth.gone else truth.seen
                if truth.gone:
                    del self.jobs[name]
        shown = [truth.shown for truth in self.jobs.values() if truth.shown is not None]
        others = [
            ObservedJob(
                name, "prepare", "f" * 32, 1, JobState.RUNNING, alive=True, ours=False, stripped=name in self.stripped
            )
            for name in self.foreign
        ]
        return [*shown, *others]

    def look(
        self,
        stale: frozenset[str] = frozenset(),
        *,
        crash_after: int | None = None,
        twice: frozenset[str] = frozenset(),
        refused: Collection[Phase] = (),
    ) -> Decision:
        """One pass of the operator, in the controller's order: creations, the status, deletions. `crash_after`: it dies
        after so many of these. `twice`: jobs listed twice. `refused`: no job of these phases can be made.
        """
        before = [truth.shown for name, truth in self.jobs.items() if name in twice and truth.shown is not None]
        listing = [*before, *self.listing(stale)]
        self.lived = {job.name for job in before if job.alive}
        for job in listing:
            heard = max(job.started or self.now, job.last_event or self.now)
            self.faults[job.step] += job.state is JobState.RUNNING and self.now - heard >= SILENCE
        unmade: dict[str, str] = {}
        decision = reconcile(self.run, listing, self.now)
        while jobs := [job for job in jobs_wanted(decision) if job.phase in refused and job.name not in unmade]:
            unmade |= {job.name: "the quota is used up" for job in jobs}
            decision = reconcile(self.run, listing, self.now, unmade)
        self._check(decision, listing, unmade)
        creations = [action for action in decision.actions if isinstance(action, CreateJob)]
        deletions = [action for action in decision.actions if isinstance(action, DeleteJob)]
        left = len(decision.actions) + 1 if crash_after is None else crash_after
        for action in creations[:left]:
            self._create(action.job, decision.status)
        if left > len(creations):
            self._store(decision.status)
        for action in deletions[: max(0, left - len(creations) - 1)]:
            self._delete(action.name)
        if crash_after is None:
            self._check_that_all_is_wanted()
            self._check_that_jobs_go_in_time(decision)
        else:
            self.catch_up()  # whoever starts anew lists anew
        return decision

    def _store(self, status: CompressionRunStatus) -> None:
        for step in status.steps:
            before = self.status.step(step.name)
            if self.run.spec.suspend and before and before.state.active and step.state is StepState.PENDING:
                self.halted.add(before.job_name or "")
        self.run = self.run.model_copy(update={"status": status})

    def _delete(self, name: str) -> None:
        if name in self.foreign:
            raise Violation(f"deletes {name}, which is not ours")
        if name not in self.jobs:
            return
        job = self._shown().get(name)
        if job is not None:
            untold = kept.end_untold(self.status, job, self.halted)
            if untold:
                raise Violation(f"{name} goes, and {untold}")
            over = kept.time_is_over(self.run, job, self._shown().values(), self.now)
            if kept.has_a_history(self.status, job) and not over:
                raise Violation(f"{name} goes before its time")
        self.update(name, deleting=True)

    def _shown(self) -> dict[str, ObservedJob]:
        """What the operator has been shown. Which of two showings is newer it can't know: what may live, lives."""
        shown = {name: truth.shown for name, truth in self.jobs.items() if truth.shown is not None}
        return {name: replace(job, alive=job.alive or name in self.lived) for name, job in shown.items()}

    def _check_that_jobs_go_in_time(self, decision: Decision) -> None:
        shown = self._shown()
        for name, job in shown.items():
            if self.jobs[name].seen.deleting:
                continue
            left = kept.seconds_to_linger(self.status, job, self.now)
            if left is not None and (left <= 0 or (decision.look_again_seconds or LATER) > left):
                raise Violation(f"{name} is done, but lives; stop it in {left} s, not {decision.look_again_seconds}")
            if not kept.has_a_history(self.status, job):
                continue
            if kept.time_is_over(self.run, job, shown.values(), self.now):
                raise Violation(f"{name} stays beyond its time")
            until, again = kept.seconds_left(self.run, job, self.now), decision.look_again_seconds
            if until is not None and (again is None or again > until):
                raise Violation(f"{name} is to go in {until} s, looks again in {again} s")

    def catch_up(self) -> None:
        """Let the listing show the truth."""
        self.listing()

    def _create(self, job: Job, decided: CompressionRunStatus) -> None:
        if job.name in self.foreign:
            raise Violation(f"creates {job.name}, which exists and is not ours")
        if job.name in self.jobs and not self.jobs[job.name].gone:
            return
        for truth in self.jobs.values():
            if truth.live and truth.job.step == job.step:
                raise Violation(f"{job.name} starts while {truth.job.name} of the same step is live")
            if truth.live and truth.job.fingerprint == job.fingerprint:
                raise Violation(f"{job.name} starts while {truth.job.name} of the same fingerprint is live")
        if early := set(job.config.inputs) - self.published - self.lost:
            raise Violation(f"{job.name} starts before {early}")
        step = self.status.step(job.step)
        done = step is not None and step.state is StepState.SUCCEEDED and step.fingerprint == job.fingerprint
        if step and done and step.artifact not in self.missed:
            raise Violation(f"{job.step} is done and runs again as {job.name}")
        # An empty token asks for nothing.
        token = self.run.metadata.annotations.get(RETRY_ANNOTATION) or self.status.handled_retry
        wish = self.run.metadata.generation, token
        if self.mistakes.get(job.step) == wish:
            raise Violation(f"{job.name} tries a user's mistake again")
        live = [one for one in self.jobs.values() if one.live and not kept.lingers(decided, one.seen, self.now)]
        taken = sum(kept.takes_a_slot(one.job, one.shown or one.seen, job) for one in live)
        if job.name not in self.names and taken >= self.run.spec.max_parallel_jobs:
            raise Violation(f"{job.name} would be one of {taken + 1} live jobs")
        self.names.add(job.name)
        self.made[job.step] += 1
        seen = self._as_made(job)
        self.jobs[job.name] = Truth(job, seen, self.real, shown=seen)

    def _as_made(self, job: Job) -> ObservedJob:
        """The job as a listing shows it right after it was made."""
        state = JobState.PENDING
        return ObservedJob(job.name, job.step, job.fingerprint, job.attempt, state, alive=True, created=self.now)

    def _check(self, decision: Decision, listing: list[ObservedJob], unmade: Mapping[str, str]) -> None:
        status = decision.status
        text = json.dumps(status.to_json(), allow_nan=False)
        if CompressionRunStatus.model_validate(json.loads(text)) != status:
            raise Violation(f"the status does not survive being written: {text}")
        times = [value for value in leaves(status.model_dump()) if isinstance(value, datetime)]
        if any(time.microsecond or time.tzinfo is not UTC for time in times):
            raise Violation(f"times are not whole seconds in UTC: {text}")
        if set(unmade) & {job.name for job in jobs_wanted(decision)}:
            raise Violation("decides to make what cannot be made")
        there = {job.name for job in listing}
        made = [self._as_made(job) for job in jobs_wanted(decision) if job.name not in there]
        again = reconcile(self.run.model_copy(update={"status": status}), [*listing, *made], self.now, unmade)
        if again.status != status or again.events:
            raise Violation(f"a second look changes the status:\n{again.status.to_json()}\n{text}")
        if status.phase in FINISHED and not all(step.state.final for step in status.steps):
            raise Violation(f"is {status.phase} before all steps are final")
        for step in status.steps:
            if step.failures > self.faults[step.name]:
                raise Violation(f"{step.failures} failures of {step.name}, there were {self.faults[step.name]}")
        for condition in status.conditions:
            before = next((c for c in self.status.conditions if c.type == condition.type), None)
            moved = before is not None and before.last_transition_time != condition.last_transition_time
            if before and moved and before.status == condition.status:
                raise Violation(f"the time of {condition.type} moved, its status did not")
            if before and before.status != condition.status and condition.last_transition_time != seconds(self.now):
                raise Violation(f"{condition.type} changed without its time")
        if decision.look_again_seconds is not None and not 0 <= decision.look_again_seconds < float("inf"):
            raise Violation(f"looks again in {decision.look_again_seconds} s")

    def _check_that_all_is_wanted(self) -> None:
        goes_on = not self.run.spec.suspend
        steps = self.status.steps
        named = {
            step.job_name for step in steps if step.state is StepState.SUCCEEDED or (step.state.active and goes_on)
        }
        for name, truth in self.jobs.items():
            if truth.live and truth.shown is not None and not truth.seen.deleting and name not in named:
                raise Violation(f"{name} goes on though no step wants it")

    # -- the jobs -----------------------------------------------------------------------------------------------------

    def update(self, name: str, **changes: Any) -> None:
        truth = self.jobs[name]
        if truth.shown == truth.seen:
            truth.changed = self.real
        truth.seen = replace(truth.seen, **changes)

    def start(self, name: str) -> None:
        placed = {"waiting": None, "half_placed": None, "message": ""}
        self.update(name, state=JobState.RUNNING, started=self.now, last_event=self.now, **placed)

    def place_half(self, name: str) -> None:
        """One of the job's pods has its place, another one finds none."""
        wait = kept.finds_no_place(f"{name}-worker-0", self.now)
        self.update(name, waiting=wait, half_placed=self.now, message=wait.message)

    def beat(self, name: str) -> None:
        """A sign of life."""
        self.update(name, last_event=self.now, progress=Progress(step=1, total_steps=2, loss=3.5))

    def succeed(self, name: str, *, alive: bool = False, said: bool = True) -> None:
        """The job publishes its artifact and ends; `alive`: one of its pods doesn't; not `said`: its result is lost."""
        job = self.jobs[name].job
        missing = [told for told in job.config.inputs if told in self.lost or not takes(job, told, self.digests)]
        if missing:
            self.miss(name, missing)
            return
        self.faults[job.step] += not said
        report = result(job)
        artifact = f"{job.phase}-{report.get('key', job.config.artifact_key)}"
        report["cached"] = artifact in self.published and adopts(job, self.digests[artifact])
        if not report["cached"]:
            self.digests[artifact] = f"made by {name}"
        report["digest"] = self.digests[artifact]
        self.published.add(artifact)
        self.lost.discard(artifact)
        termination = Termination.model_validate({"class": ExitClass.DONE, "result": report if said else {}})
        self.update(name, state=JobState.SUCCEEDED, alive=alive, ended=self.now, termination=termination, exit_code=0)

    def lose(self, artifact: str) -> None:
        """An artifact is gone: gc from an older snapshot, a restored volume."""
        self.published.discard(artifact)
        self.lost.add(artifact)

    def change(self, artifact: str) -> None:
        """Somebody writes another artifact of this name, or the first one."""
        self.published.add(artifact)
        self.lost.discard(artifact)
        self.digests[artifact] = "was planted"

    def miss(self, name: str, artifacts: list[str]) -> None:
        """The job ends, for inputs of it are gone."""
        self.missed.update(artifacts)
        said = {"class": ExitClass.TRANSIENT, "message": "the store has no such artifact", "missing": artifacts}
        ended = {"state": JobState.FAILED, "alive": False, "ended": self.now, "exit_code": 75}
        self.update(name, **ended, termination=Termination.model_validate(said))

    def fail(self, name: str, exit_class: ExitClass | None, *, alive: bool = False) -> None:
        """The job ends badly; None: without a word, by a signal."""
        truth = self.jobs[name]
        self.faults[truth.job.step] += exit_class in (None, ExitClass.TRANSIENT)
        if exit_class is ExitClass.USER_ERROR and not truth.seen.deleting:
            # Only an edit or a retry that the operator does not know of yet makes it worth another attempt.
            self.mistakes[truth.job.step] = self.status.observed_generation, self.status.handled_retry
        said = {"class": exit_class, "rank": 1, "message": f"{exit_class} of {name}"}
        termination = exit_class and Termination.model_validate(said)
        ended = {"state": JobState.FAILED, "alive": alive, "ended": self.now}
        self.update(name, **ended, termination=termination, exit_code=137 if exit_class is None else exit_class.code)

    def lose_pod(self, name: str) -> None:
        """A pod was evicted, while the others still run."""
        self.update(name, interrupted=True)

    def lose_node(self, name: str) -> None:
        """The node of the job's only pod is lost, and Kubernetes has given it up."""
        self.update(name, interrupted=True, alive=False, state=JobState.FAILED, ended=self.now)

    def settle(self, name: str) -> None:
        """What was left of the job is gone: pods of one that ended, a deleted one as a whole."""
        truth = self.jobs[name]
        if truth.seen.deleting:
            self.vanish(name)
        else:
            self.update(name, alive=False)

    def vanish(self, name: str) -> None:
        truth = self.jobs[name]
        if truth.shown == truth.seen:
            truth.changed = self.real
        truth.gone = True
        if truth.shown is None:
            del self.jobs[name]

    def pass_time(self, passed: float) -> None:
        self.real += timedelta(seconds=passed)

    def jump(self, by: float) -> None:
        """The clock is set; the listing has long caught up when it goes on."""
        self.skew += timedelta(seconds=by)
        self.catch_up()

    # -- the end ------------------------------------------------------------------------------------------------------

    def drive(self, limit: int = 400, *, failing: Collection[str] = ()) -> None:
        """Let every job do well but those of `failing` steps, until only time goes by. Raises Violation: no end."""
        for _ in range(limit):
            decision = self.look()
            moved = bool(decision.actions)
            for name, truth in list(self.jobs.items()):
                if truth.gone:
                    continue
                moved = moved or truth.live
                if truth.seen.deleting or (truth.seen.alive and truth.seen.ended_as):
                    self.settle(name)
                elif truth.seen.state is JobState.PENDING:
                    self.start(name)
                elif truth.seen.ended_as is None and truth.job.step in failing:
                    self.fail(name, ExitClass.USER_ERROR)
                elif truth.seen.ended_as is None:
                    self.succeed(name)
            if not moved and (decision.look_again_seconds or LATER) >= LATER:
                return
            self.pass_time(1 if moved else max(1.0, decision.look_again_seconds or 1.0))
        raise Violation(f"never ends: {self.status.to_json()}")
