"""Which jobs to start and which to stop, once every step is up to date with what its jobs did. Pure.

A job is wanted while a step names it; whatever else of the run's is live is stopped. A step's new attempt waits until
no other job of it is live, and until none in the run makes the same artifact.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from compression_operator.api.status import Step, StepState
from compression_pipeline.config import PHASES

from .jobs import Action, CreateJob, DeleteJob, Job, ObservedJob, WaitReason
from .plan import Plan, PlannedStep
from .steps import cut, due

LINGER = timedelta(seconds=60)
"""Time for the rest of a job to end, once its result is in the status. A sidecar would keep it alive for ever."""

NAME_PATIENCE = timedelta(seconds=60)
"""Time for another's job to free a name, as that of a run which was just deleted does. From then on it is a problem."""

OTHER_NAME = timedelta(seconds=70)
"""Time after which the step's job gets another number, and so another name: a look later than the problem is told."""


@dataclass(frozen=True)
class Limits:
    """What holds jobs back besides their inputs."""

    max_parallel_jobs: int
    suspended: bool
    faults: Mapping[str, str]  # by student: why it cannot be made of this teacher
    unfit: str | None  # why nothing can be trained on the text that was prepared
    foreign: frozenset[str]  # names of jobs that exist and are not this run's
    unmade: Mapping[str, object]  # by name: jobs that cannot be made, and why


@dataclass(frozen=True)
class _Wait:
    message: str
    for_a_job: bool = False  # to be gone
    for_a_name: bool = False  # that a job has which isn't the run's


class Schedule:
    """Decides step by step, in the plan's order; collects the actions."""

    def __init__(
        self, run: str, plan: Plan, jobs: Mapping[str, ObservedJob], steps: Mapping[str, Step], limits: Limits
    ) -> None:
        """`jobs`: the run's own, by name. `steps`: by name, up to date with the jobs."""
        self.steps = dict(steps)
        self.actions: list[Action] = []
        self.blocked: list[str] = []
        self._run = run
        self._plan = plan
        self._jobs = jobs
        self._limits = limits
        self._over: set[str] = set()  # done for long enough: no slot is theirs any more
        self._live = {job.name: (job.step, job.fingerprint) for job in jobs.values() if job.live}
        for step in steps.values():
            if step.state.active and step.job_name and step.fingerprint:
                self._live[step.job_name] = (step.name, step.fingerprint)

    def decide(self, now: datetime) -> None:
        """Advance every step; `steps`, `actions` and `blocked` hold the outcome."""
        self._over = {job.name for job in self._jobs.values() if _outlives_its_step(self.steps.get(job.step), job, now)}
        for planned in self._plan.steps:
            self.steps[planned.name] = self._advanced(planned, self.steps[planned.name], now)
        # What a step waits for is told once all that can start has started, so that a second look tells the same.
        for planned in self._plan.steps:
            self.steps[planned.name] = self._with_wait(planned, self.steps[planned.name], now)
        self.actions += unwanted_jobs(self.steps, self._jobs, now)

    def _advanced(self, planned: PlannedStep, step: Step, now: datetime) -> Step:
        if step.state.active or step.state in (StepState.SUCCEEDED, StepState.FAILED):
            return step
        if fault := self._fault(planned):
            changes = {"state": StepState.FAILED, "message": fault, "completion_time": now, "waiting_reason": None}
            return step.model_copy(update=changes)
        skipped = self._skip_reason(planned)
        if skipped:
            return step.model_copy(update={"state": StepState.SKIPPED, "message": skipped, "waiting_reason": None})
        if self._wait(planned, step, now) is None:
            return self._started(planned, step, now)
        return step.model_copy(update={"state": StepState.PENDING})

    def _fault(self, planned: PlannedStep) -> str | None:
        """Why the step cannot be, whatever it is tried with."""
        inputs = [self._plan.get(name) for name in planned.predecessors]
        first_of_student = not any(one and one.student == planned.student for one in inputs)
        if first_of_student and (fault := self._limits.faults.get(planned.student or "")):
            return fault
        of_sources_alone = bool(inputs) and all(one and PHASES[one.phase].reads_sources for one in inputs)
        return self._limits.unfit if of_sources_alone else None

    def _with_wait(self, planned: PlannedStep, step: Step, now: datetime) -> Step:
        wait = self._wait(planned, step, now) if step.state is StepState.PENDING else None
        if wait is None:
            return step.model_copy(update={"name_taken_since": None})
        if wait.for_a_job:
            self.blocked.append(step.name)
        taken_for = _taken_for(step, now)
        changes: dict[str, object] = {
            "message": wait.message,
            "name_taken_since": now - taken_for if wait.for_a_name else None,
        }
        if wait.for_a_name and taken_for >= NAME_PATIENCE:
            changes["waiting_reason"] = WaitReason.JOB_NAME_TAKEN.value
        elif step.waiting_reason == WaitReason.JOB_NAME_TAKEN:
            changes["waiting_reason"] = None
        return step.model_copy(update=changes)

    def _skip_reason(self, planned: PlannedStep) -> str | None:
        failed = next((name for name in planned.predecessors if self._ended_badly(name)), None)
        if self._limits.faults and not PHASES[planned.phase].reads_sources:
            return f"not started because {' and '.join(self._limits.faults)} cannot be made of this teacher"
        return f"not started because {failed} did not succeed" if failed else None

    def _ended_badly(self, name: str) -> bool:
        return self.steps[name].state in (StepState.FAILED, StepState.SKIPPED)

    def _wait(self, planned: PlannedStep, step: Step, now: datetime) -> _Wait | None:
        """What the step waits for; None where it can start."""
        missing = [name for name in planned.predecessors if self.steps[name].state is not StepState.SUCCEEDED]
        if missing or planned.fingerprint is None:
            return _Wait(f"waits for {missing[0] if missing else 'its inputs to be known'}")
        if self._limits.suspended:
            return _Wait("waits because the run is suspended")
        if not due(step, now):
            return _Wait(f"tries again at {step.retry_time:%H:%M:%S} UTC, after: {_failure_message(step)}")
        others = self._other_live_jobs(step)
        if others:
            return _Wait(f"waits for job {others[0]} to end", for_a_job=True)
        twin = next((owner for owner, mark in self._live.values() if mark == planned.fingerprint), None)
        if twin:
            return _Wait(f"waits for {twin}, which makes the same", for_a_job=True)
        if (full := self._full(planned, now)) is not None:
            return full
        name = self._next_job(planned, step, now).name
        if name in self._limits.foreign:
            message = f"waits for job {name} to be removed, which is not this run's"
            return _Wait(message, for_a_job=True, for_a_name=True)
        if name in self._limits.unmade:
            return _Wait(cut(f"waits because its job cannot be made: {self._limits.unmade[name]}"))
        return None

    def _full(self, planned: PlannedStep, now: datetime) -> _Wait | None:
        """The wait for a slot, where none is free. One whose job waits for a GPU is free for a step that needs none."""
        slots, needs_gpu = self._limits.max_parallel_jobs, planned.settings.gpus_per_node > 0
        taken = [name for name in self._live if name not in self._over and (needs_gpu or not self._idle(name))]
        if len(taken) < slots:
            return None
        ending = sorted(name for name in taken if self._is_ending(name, now))
        if len(taken) - len(ending) < slots:
            return _Wait(f"waits for job {ending[0]} to end", for_a_job=True)
        return _Wait(f"waits for a free slot (maxParallelJobs is {slots})")

    def _idle(self, name: str) -> bool:
        job = self._jobs.get(name)
        planned = self._plan.get(job.step) if job is not None else None
        waits = job is not None and job.waiting is not None and job.waiting.reason is WaitReason.UNSCHEDULABLE
        return waits and planned is not None and planned.settings.gpus_per_node > 0

    def _is_ending(self, name: str, now: datetime) -> bool:
        job = self._jobs.get(name)
        return job is not None and (job.deleting or _deletion_reason(self.steps.get(job.step), job, now) is not None)

    def _other_live_jobs(self, step: Step) -> list[str]:
        """Live jobs of the step, its present one left out."""
        present = step.job_name if step.state.active else None
        return [name for name, (owner, _) in self._live.items() if owner == step.name and name != present]

    def _next_job(self, planned: PlannedStep, step: Step, now: datetime) -> Job:
        """The job of the step's next attempt. A number whose name another's job has kept for long is passed over."""
        seen = [job.attempt for job in self._jobs.values() if job.step == step.name]
        attempt = max([step.attempt, *seen]) + 1
        job = self._plan.job(planned, run=self._run, attempt=attempt)
        while job.name in self._limits.foreign and _taken_for(step, now) >= OTHER_NAME:
            attempt += 1
            job = self._plan.job(planned, run=self._run, attempt=attempt)
        return job

    def _started(self, planned: PlannedStep, step: Step, now: datetime) -> Step:
        job = self._next_job(planned, step, now)
        self.actions.append(CreateJob(job))
        self._live[job.name] = (job.step, job.fingerprint)
        return step.model_copy(
            update={
                "state": StepState.STARTING,
                "attempt": job.attempt,
                "job_name": job.name,
                "name_taken_since": None,
                "waiting_reason": None,
                "start_time": None,
                "completion_time": None,
                "retry_time": None,
                "message": "",
                "progress": None,
            }
        )


def _taken_for(step: Step, now: datetime) -> timedelta:
    """For how long the name of the step's next job has been another's, also where the clock was ahead at first."""
    since = step.name_taken_since
    return now - since if since is not None and since <= now else timedelta(0)


def _failure_message(step: Step) -> str:
    return step.last_failure.message if step.last_failure else step.message


def unwanted_jobs(steps: Mapping[str, Step], jobs: Mapping[str, ObservedJob], now: datetime) -> Iterator[DeleteJob]:
    """The run's jobs that no step wants, given its steps: live ones to stop, ended ones that made something else."""
    for job in jobs.values():
        reason = _deletion_reason(steps.get(job.step), job, now)
        if reason and not job.deleting:
            yield DeleteJob(job.name, job.step, reason)


def release_time(step: Step | None, job: ObservedJob) -> datetime | None:
    """When a job that has made what its step wants is stopped, should anything of it still live."""
    done = step is not None and step.state is StepState.SUCCEEDED and step.job_name == job.name and job.live
    return step.completion_time + LINGER if step is not None and done and step.completion_time else None


def _outlives_its_step(step: Step | None, job: ObservedJob, now: datetime) -> bool:
    time = release_time(step, job)
    # Also where the clock was ahead when the step was done.
    return time is not None and not time - LINGER <= now < time


def _deletion_reason(step: Step | None, job: ObservedJob, now: datetime) -> str | None:
    if step is None:
        return "the run has no such step any more"
    if step.fingerprint != job.fingerprint:
        # While a fingerprint is unknown, an ended job may yet turn out to be the right one.
        kept = step.fingerprint is None and not job.live
        return None if kept else "its configuration or its inputs changed"
    if _outlives_its_step(step, job, now):
        return "it is done, but something other than the pipeline, perhaps a sidecar, still runs in it"
    if not job.live or (job.name == step.job_name and (step.state.active or step.state is StepState.SUCCEEDED)):
        return None
    return step.message or "another attempt took its place"
