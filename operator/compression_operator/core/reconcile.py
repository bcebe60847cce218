"""What to do next for one run: (run, observed jobs, now) -> actions and status. Pure: no I/O, no clock, no randomness.

Nothing is remembered outside the status, and nothing in the status is needed for safety: jobs have deterministic names,
so that an action done twice is done once, and a job that isn't recorded is found in the listing.

A student that cannot be made of its teacher stops the run, as soon as the teacher has been looked at: nothing new
starts until an edit heals it, so no GPU is asked for in vain; jobs that run already go on to their end.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType

from compression_operator.api.run import RETRY_ANNOTATION, CompressionRun
from compression_operator.api.status import CompressionRunStatus, Step, StepState
from compression_pipeline.config import (
    sequence_fault,
    text_fault,
)

from .conditions import ACCEPTED, KINDS, Situation, is_finished, run_phase, summarized
from .digests import with_digests
from .events_diff import events_between
from .gates import is_open, judged, missed
from .jobs import Action, CreateJob, Decision, DeleteJob, JobState, ObservedJob, Wait
from .phase_steps import STEPS
from .plan import NOTHING_SPARED, Plan, PlannedStep, discovered_in, gpus_of, phases_that_were_planned, plan_of
from .problems import REASONS as PROBLEMS
from .results import figures_that_stand, record
from .retention import Retention, expiries
from .room import chosen
from .schedule import Limits, Schedule, release_time, unwanted_jobs
from .sizes import with_sizes
from .step_spec import Discovered
from .steps import deadlines, follow, give_back, lost, planned_step, seconds, unrecognized, with_failures_reset
from .student_faults import faults_by_student

BLOCKED_SECONDS = 10.0
"""When to look again while a step waits for a job to be gone, should nobody tell that it is."""

FIRST_LOOK = timedelta(seconds=1)
"""When to look at a job that was just made: if no controller takes it up, nothing tells of it."""

ORPHAN = "orphan"
"""Finalizer of an object whose dependants are to outlive it (metav1.FinalizerOrphanDependents)."""

NONE: Mapping[str, object] = MappingProxyType({})


def reconcile(
    run: CompressionRun, observed: Sequence[ObservedJob], now: datetime, unmade: Mapping[str, object] = NONE
) -> Decision:
    """What to do for `run`, given every job that was observed for it, and by name those that cannot be made, with the
    reason. Calling it again with the status it returns, and all else the same, gives that status.

    A finished run is looked at again only when it is edited (metadata.generation) or a new retry is asked for. One that
    is being deleted makes and tells nothing more, and what lives of it is stopped.
    """
    jobs = _merged(observed)
    ours = {name: job for name, job in jobs.items() if job.ours}
    if run.metadata.deletion_timestamp is not None:
        return Decision(run.status, tuple(_left_behind(run, ours)))
    others = {name: job for name, job in jobs.items() if not job.ours}
    look = _Pass(run, ours, others, unmade=unmade, now=now)
    return look.decide_for_finished() if _stays_finished(run) else look.decide()


def _stays_finished(run: CompressionRun) -> bool:
    status = run.status
    edited = status.observed_generation != run.metadata.generation
    return is_finished(status.steps) and not edited and not _retry_asked(run)


def _retry_asked(run: CompressionRun) -> bool:
    """Whether there is a token that was not acted on. An empty one, which the status could not tell from none, asks
    for nothing.
    """
    token = run.metadata.annotations.get(RETRY_ANNOTATION)
    return bool(token) and token != run.status.handled_retry


def _left_behind(run: CompressionRun, jobs: Mapping[str, ObservedJob]) -> Iterator[DeleteJob]:
    """The live jobs of a run that somebody's finalizer keeps: Kubernetes deletes them only once the run is gone.

    Whoever deletes it with --cascade=orphan wants them to go on, and until they are given up that finalizer stands.
    """
    if ORPHAN in (run.metadata.finalizers or ()):
        return
    for job in jobs.values():
        if job.live and not job.deleting:
            yield DeleteJob(job.name, job.step, "its run is being deleted")


class _Pass:
    """One look at a run: the steps are brought up to date in order, then jobs are started and stopped."""

    def __init__(
        self,
        run: CompressionRun,
        jobs: Mapping[str, ObservedJob],
        others: Mapping[str, ObservedJob],
        *,
        unmade: Mapping[str, object],
        now: datetime,
    ) -> None:
        self._run = run
        self._jobs = jobs
        self._foreign = frozenset(others)
        self._stripped = {job.name for job in others.values() if job.stripped}
        self._unmade = unmade
        self._exact_now = now
        self._now = seconds(now)
        self._edited = run.status.observed_generation != run.metadata.generation
        self._forgive = self._edited or _retry_asked(run)
        self._status = run.status
        self._steps: dict[str, Step] = {}
        self._missing: set[str] = set()  # artifacts that jobs did not find

    def decide(self) -> Decision:
        """The decision."""
        spec = self._run.spec
        token = self._run.metadata.annotations.get(RETRY_ANNOTATION)
        self._change(handled_retry=token or self._run.status.handled_retry)
        steps = self._updated()
        faults = self._student_faults()
        unfit = self._text_fault()
        limits = Limits(spec.max_parallel_jobs, spec.suspend, faults, unfit, self._foreign, self._unmade)
        schedule = Schedule(self._run.metadata.name, steps, self._jobs, self._steps, limits)
        schedule.decide(self._now)
        self._change(steps=[schedule.steps[planned.name] for planned in steps.steps])
        actions = [self._with_digests(action, steps, schedule) for action in schedule.actions]
        self._status = judged(spec, figures_that_stand(self._status, steps.students))
        self._status = with_sizes(self._status, self._run, steps)
        live = sum(job.live for job in self._jobs.values())
        situation = Situation(self._run.metadata.generation, spec.suspend, live, list(faults.values()))
        self._status = summarized(self._status, situation, self._now)
        expired, waits = self._retention()
        unrecognized_job = any(step.state.active and step.job_name in self._stripped for step in self._status.steps)
        waits += [BLOCKED_SECONDS] if schedule.blocked or unrecognized_job else []
        waits += [self._seconds_until(time) for time in self._recheck_times(steps)]
        return Decision(
            status=self._status,
            actions=(*actions, *expired),
            events=events_between(self._run.status, self._status),
            look_again_seconds=min(waits, default=None),
            blocked=tuple(schedule.blocked),
        )

    def decide_for_finished(self) -> Decision:
        """The decision for a finished run: its jobs go when their time is over, its status stays."""
        expired, waits = self._retention()
        steps = {step.name: step for step in self._status.steps}
        actions = (*unwanted_jobs(steps, self._jobs, self._now), *expired)
        return Decision(self._healed_status(), actions, look_again_seconds=min(waits, default=None))

    def _healed_status(self) -> CompressionRunStatus:
        """The status of a finished run, its phase and conditions written anew where somebody has changed or removed
        one, or where they tell of a problem that is over by now.
        """
        conditions, status = self._status.conditions, judged(self._run.spec, self._status)
        kinds = KINDS if is_open(status.students) is None else (*KINDS, ACCEPTED)
        whole = {condition.type for condition in conditions}.issuperset(kinds) and status == self._status
        if status.phase is not run_phase(status.steps, suspended=False, gate_missed=bool(missed(status.students))):
            whole = False
        if whole and not any(condition.reason in PROBLEMS for condition in conditions):
            return self._status
        faults = list(self._student_faults().values())
        return summarized(status, Situation(self._run.metadata.generation, False, 0, faults), self._now)

    def _change(self, **changes: object) -> None:
        self._status = self._status.model_copy(update=changes)

    # -- what happened ------------------------------------------------------------------------------------------------

    def _updated(self) -> Plan:
        """Bring every step up to date, in order. After one that finds what others are planned by, the rest is planned
        anew.
        """
        discovered, spared = discovered_in(self._status), False
        steps = self._planned(discovered)
        while planned := next((one for one in steps.steps if one.name not in self._steps), None):
            if STEPS[planned.phase].spares and not spared:  # what they may go without has been looked at by now
                spared = True
                if without := self._without(steps):
                    steps = self._planned(discovered, without)
                continue
            discovery = STEPS[planned.phase].discovery
            if discovery is not None and not self._finding_stands(planned):
                self._status = discovery.forget(self._status)
            self._update(planned, steps)
            if (found := discovered_in(self._status)) != discovered:
                discovered, steps = found, self._planned(found)
        while self._missing:
            gone, self._missing = self._missing, set()
            for planned in steps.steps:
                step = self._steps[planned.name]
                if planned.artifact in gone and step.state is StepState.SUCCEEDED:
                    # A job that makes it anew may be there already: the status that told of it was lost.
                    self._follow(lost(step, planned.artifact), planned, steps)
        return steps

    def _with_digests(self, action: Action, steps: Plan, schedule: Schedule) -> Action:
        planned = steps.get(action.job.step) if isinstance(action, CreateJob) else None
        if not isinstance(action, CreateJob) or planned is None:
            return action
        return CreateJob(with_digests(action.job, planned, self._run.spec.cache, schedule.steps))

    def _finding_stands(self, planned: PlannedStep) -> bool:
        """Whether what the step has found counts: while it runs again because its artifact is gone, it does."""
        before = self._run.status.step(planned.name)
        done = before is not None and (before.state is StepState.SUCCEEDED or before.lost_attempt > 0)
        return done and before is not None and before.fingerprint == planned.fingerprint

    def _without(self, steps: Plan) -> Mapping[str, Set[str]]:
        """By step: the roles that it goes without, because what fills them has failed, and nothing else has."""
        found: dict[str, Set[str]] = {}
        for planned in steps.steps:
            states = {role: self._steps[name].state for role, name in planned.inputs.items() if name in self._steps}
            failed = {role for role, state in states.items() if state is StepState.FAILED}
            if failed and failed <= STEPS[planned.phase].spares:
                found[planned.name] = failed
        return found

    def _planned(self, discovered: Discovered, without: Mapping[str, Set[str]] = NOTHING_SPARED) -> Plan:
        # Within one generation what was planned stands, whatever version of the operator planned it; not where it
        # follows from how other steps ended.
        before, kept = self._run.status, dict[str, str]()
        if not self._edited:
            stand = {phase for phase in phases_that_were_planned(before) if not STEPS[phase].spares}
            kept = {step.name: step.fingerprint for step in before.steps if step.phase in stand and step.fingerprint}
        return plan_of(self._run, discovered=discovered, kept=kept, without=without)

    def _update(self, planned: PlannedStep, steps: Plan) -> None:
        step = planned_step(self._run.status.step(planned.name), planned)
        discovery = STEPS[planned.phase].discovery
        if discovery and discovery.read(self._status) is None and step.state is StepState.SUCCEEDED:
            step = step.model_copy(update={"state": StepState.PENDING})  # what it found was lost
        self._follow(with_failures_reset(step) if self._forgive else step, planned, steps)

    def _follow(self, step: Step, planned: PlannedStep, steps: Plan) -> None:
        """Bring one step up to date with its jobs, and the status with what they found."""
        if step.state.active and step.job_name in self._stripped:
            self._steps[planned.name] = unrecognized(step)
            return
        makable = frozenset(one.artifact for one in steps.steps if one.artifact)
        jobs = [job for job in self._jobs.values() if job.step == planned.name]
        halt = self._run.spec.suspend
        followed = follow(step, jobs, planned.settings, self._now, halt=halt, makable=makable)
        step = followed.step
        self._missing |= followed.missing
        if followed.result is not None:
            result = followed.result
            made = f"{planned.phase}-{result.found_key}" if result.found_key else planned.artifact
            step = step.model_copy(update={"artifact": made, "digest": result.digest})
            self._status = record(self._status, step, result)
        if step.state is not StepState.PENDING:
            step = step.model_copy(update={"waiting_reason": self._waiting_reason(step)})
        self._steps[planned.name] = step

    def _waiting_reason(self, step: Step) -> str | None:
        """What keeps the step's job from running, once that is more than everyday life."""
        wait = self._wait(step)
        counts = wait is not None and wait.counts_from is not None and wait.counts_from <= self._now
        return wait.reason.value if wait is not None and counts else None

    def _wait(self, step: Step) -> Wait | None:
        job = self._jobs.get(step.job_name or "")
        return job.waiting if job is not None and step.state.active else None

    def _student_faults(self) -> dict[str, str]:
        teacher = self._status.teacher
        if teacher is None or self._status.resolved is None:
            return {}
        steps = [*self._steps.values(), *self._status.steps]
        done = {one.student for one in steps if STEPS[one.phase].finds_shape and one.state is StepState.SUCCEEDED}
        shapes = {
            one.name: chosen(one.candidates, teacher)
            for one in self._status.students
            if one.candidates and one.name in done
        }
        found = faults_by_student(self._run.spec, teacher, shapes, gpus=gpus_of(self._run))
        return {name: "; ".join(f"{field}: {sentence}" for field, sentence in faults) for name, faults in found.items()}

    def _text_fault(self) -> str | None:
        """Why the text that was prepared cannot be trained on: the teacher takes no sequences of this length, or a
        training could make no batch of it.
        """
        teacher, resolved, dataset = self._status.teacher, self._status.resolved, self._run.spec.dataset
        if teacher is None or resolved is None:
            return None
        fault = sequence_fault(teacher, dataset.sequence_length)
        tokens, held_out = resolved.train_tokens, resolved.validation_tokens
        if fault is None and tokens is not None and held_out is not None:
            trainings = self._run.spec.trainings()
            fault = text_fault(
                dataset,
                train_tokens=tokens,
                validation_tokens=held_out,
                trainings=trainings,
                sources=resolved.sources,
            )
        return f"spec.{fault}" if fault else None

    # -- when to look again -------------------------------------------------------------------------------------------

    def _seconds_until(self, time: datetime) -> float:
        return max(0.0, (time - self._exact_now).total_seconds())

    def _retention(self) -> tuple[list[DeleteJob], list[float]]:
        """Ended jobs whose time is over, and in how many seconds that of each other one will be, or of one that is done
        and still lives.
        """
        spec = self._run.spec
        keep = Retention(spec.job_history_limit, timedelta(seconds=spec.ttl_seconds_after_finished))
        steps = {step.name: step for step in self._status.steps}
        found = list(expiries(steps, self._jobs, keep, self._exact_now))
        over = [DeleteJob(expiry.job, expiry.step, expiry.why) for expiry in found if expiry.when <= self._exact_now]
        times = [expiry.when for expiry in found]
        times += [time for job in self._jobs.values() if (time := release_time(steps.get(job.step), job))]
        return over, [self._seconds_until(time) for time in times if time > self._exact_now]

    def _recheck_times(self, steps: Plan) -> Iterator[datetime]:
        """When a pause or a deadline may be over; whatever else happens is told by an event."""
        settings = {planned.name: planned.settings for planned in steps.steps}
        for step in self._status.steps:
            if step.state is StepState.PENDING and step.retry_time is not None and step.retry_time > self._now:
                yield step.retry_time
            if step.state.active and step.job_name not in {*self._jobs, *self._stripped}:
                yield self._now + FIRST_LOOK
            job = self._jobs.get(step.job_name or "")
            if job is not None and step.state.active and (gives_back := give_back(job, settings[step.name])):
                yield gives_back
            if job is not None and step.state is StepState.RUNNING:
                yield from (when for when, _ in deadlines(job, settings[step.name]))
            wait = self._wait(step)
            if wait is not None:
                yield from (time for time in (wait.told_from, wait.counts_from) if time and time > self._now)


def _merged(observed: Iterable[ObservedJob]) -> dict[str, ObservedJob]:
    """The jobs by name. Where a name was listed twice, at different times, the later state counts, and the worst of
    everything that calls for care.
    """
    found: dict[str, ObservedJob] = {}
    for job in observed:
        other = found.get(job.name)
        if other is None:
            found[job.name] = job
            continue
        later = max(other, job, key=_recency)
        found[job.name] = replace(
            later,
            alive=job.alive or other.alive,
            ours=job.ours and other.ours,
            deleting=job.deleting or other.deleting,
        )
    return found


def _recency(job: ObservedJob) -> tuple[bool, bool, float]:
    created = job.created.timestamp() if job.created else 0.0
    return job.ended_as is not None, job.state is not JobState.PENDING, created
