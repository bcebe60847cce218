"""The life of one step: what a plan and the states of its jobs make of it. Pure."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from compression_operator.api.attempts import AttemptRecord, Progress
from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.api.status import Step, StepState
from compression_pipeline.config import ExitClass, StepResult

from .jobs import JobState, ObservedJob, WaitReason
from .plan import PlannedStep
from .results import read_result

FIRST_BACKOFF = timedelta(seconds=10)
MAX_BACKOFF = timedelta(seconds=600)
"""Pause after the n-th passing fault of a step, after the n-th input that it missed, and after the n-th interruption in
a row without progress, from the second one on: 10 s x 2^(n-1), at most ten minutes.
"""

INTERRUPTION_PACE = timedelta(seconds=10)
"""Least time from the start of an interrupted attempt to the next one."""

MOST_REMAKES = 3
"""How often inputs are made again for one step, should something remove them each time."""

MESSAGE_LIMIT = 1000
"""Characters of one message in the status: 32 students' steps must fit an object of the API server."""


@dataclass(frozen=True)
class Followed:
    """A step after its jobs were looked at, and the result where it has just succeeded."""

    step: Step
    result: StepResult | None = None
    missing: frozenset[str] = frozenset()  # artifacts that its job did not find


def seconds(time: datetime) -> datetime:
    """`time` in UTC, whole seconds: as it stands in a status."""
    return time.astimezone(UTC).replace(microsecond=0)


def cut(message: str) -> str:
    """`message`, short enough for a status."""
    return message if len(message) <= MESSAGE_LIMIT else f"{message[: MESSAGE_LIMIT - 1]}…"


def planned_step(prior: Step | None, planned: PlannedStep) -> Step:
    """The step as the plan has it: what was done stands while its fingerprint does.

    While a fingerprint is unknown, because what it rests on is made again, a finished step stays as it is: equal
    content will give it the same fingerprint. Attempts are counted on over edits, so no job's name comes twice.
    """
    fresh = Step(name=planned.name, phase=planned.phase, student=planned.student, fingerprint=planned.fingerprint)
    if prior is None:
        return fresh
    if planned.fingerprint is None and prior.state is StepState.SUCCEEDED:
        return prior
    if planned.fingerprint is not None and prior.fingerprint == planned.fingerprint:
        return prior
    kept = {name: getattr(prior, name) for name in ("attempt", "job_name", "lost_attempt", "remakes")}
    return fresh.model_copy(update=kept)


def with_failures_reset(step: Step) -> Step:
    """The step with its failures forgotten: the user edited the run or asked for a retry."""
    match step.state:
        case StepState.FAILED | StepState.PENDING:
            counts = {"failures": 0, "interruptions": 0, "deletions": 0, "remakes": 0}
            cleared = {**counts, "retry_time": None, "completion_time": None, "message": "", "waiting_reason": None}
            return step.model_copy(update={"state": StepState.PENDING, **cleared})
        case _:
            return step


def lost(step: Step, name: str) -> Step:
    """A step that is done, once what it made is gone, or another has taken its place: it runs again.

    The digest stays, because it may have been out of sight only.
    """
    undone = {"state": StepState.PENDING, "lost_attempt": step.attempt, "artifact": None, "cached": False}
    cleared = {"failures": 0, "interruptions": 0, "deletions": 0, "furthest": 0}
    idle = {"start_time": None, "completion_time": None, "retry_time": None, "progress": None}
    return step.model_copy(
        update={**undone, **cleared, **idle, "message": f"runs again, for {name} is gone or changed"}
    )


def follow(
    step: Step,
    jobs: Sequence[ObservedJob],
    settings: PhaseSettings,
    now: datetime,
    *,
    halt: bool,
    makable: frozenset[str] = frozenset(),
) -> Followed:
    """The step after a look at `jobs`, all this run's jobs for it. `halt`: the run is suspended, so a job that goes on
    is no longer wanted. `makable`: artifacts that steps of the plan make.
    """
    if step.state in (StepState.SUCCEEDED, StepState.FAILED) or step.fingerprint is None:
        return Followed(step)
    candidates = [job for job in jobs if job.fingerprint == step.fingerprint and job.attempt > step.lost_attempt]
    for job in candidates:
        result = read_result(step.phase, job)
        if result is not None:
            return Followed(_succeeded(step, job, result, now), result)
    # An attempt that isn't newer than the last one accounted for has been accounted for.
    first_new = step.attempt if step.state.active else step.attempt + 1
    job = max((job for job in candidates if job.attempt >= first_new), key=lambda job: job.attempt, default=None)
    if job is None:
        return Followed(_without_its_job(step, now, halt=halt) if step.state.active else step)
    if job.attempt > step.attempt:
        step = step.model_copy(update={"progress": None})  # an earlier attempt's
    step = step.model_copy(update={"attempt": job.attempt, "job_name": job.name})
    said = job.termination.missing if job.ended_as is ExitClass.TRANSIENT and job.termination else []
    if missing := makable.intersection(said):
        step = _missing(step, job, now)
        # For a step that has failed for good nothing is made again.
        return Followed(step, missing=missing if step.state is StepState.PENDING else frozenset())
    return Followed(_with_job(step, job, settings, now, halt=halt))


def unrecognized(step: Step) -> Step:
    """The step whose job is there under its name, but has lost labels or its ownerReference. It may still run, so no
    other attempt begins beside it; and it may be another's by now, so it is not touched.
    """
    message = (
        f"job {step.job_name} exists, but its labels or its ownerReference do not show that it belongs to this run: "
        "restore them as they were, or delete the job to have another attempt"
    )
    return step.model_copy(update={"message": message, "waiting_reason": WaitReason.JOB_NOT_RECOGNIZED.value})


def due(step: Step, now: datetime) -> bool:
    """Whether the pause before the step's next attempt is over, also where the clock was ahead when it was set."""
    return step.retry_time is None or not now < step.retry_time <= now + 2 * MAX_BACKOFF


def deadlines(job: ObservedJob, settings: PhaseSettings) -> Iterable[tuple[datetime, str]]:
    """When a running job must be stopped, and why; waiting does not count."""
    started = job.started or job.created
    if job.state is not JobState.RUNNING or started is None:
        return
    waited = timedelta(seconds=job.suspended_seconds)
    limit = settings.active_deadline_seconds
    if limit is not None:
        turn = started + waited + timedelta(seconds=job.waited_seconds)
        yield turn + timedelta(seconds=limit), f"ran longer than activeDeadlineSeconds ({limit})"
    silence = settings.progress_deadline_seconds
    alive_at = max(started, job.last_event or started)
    yield (
        alive_at + waited + timedelta(seconds=silence),
        f"gave no sign of life for progressDeadlineSeconds ({silence}), so it hangs",
    )


def give_back(job: ObservedJob, settings: PhaseSettings) -> datetime | None:
    """When a job gives its places back, some of whose pods have none: another one may need just these."""
    if job.half_placed is None or job.deleting:
        return None
    return job.half_placed + timedelta(seconds=settings.rendezvous_timeout_seconds)


def _with_job(step: Step, job: ObservedJob, settings: PhaseSettings, now: datetime, *, halt: bool) -> Step:
    """The step by the state of its newest job."""
    match job.ended_as:
        case ExitClass.DONE:
            return _after_passing_fault(
                step, job, settings, now, job.message or "it ended without a result that can be read"
            )
        case ExitClass.TRANSIENT:
            return _after_passing_fault(step, job, settings, now, _message(job))
        case ExitClass.USER_ERROR:
            return _failed(step, job, ExitClass.USER_ERROR, now, _message(job))
        case ExitClass.INTERRUPTED:
            return _interrupted(step, job, now)
        case None:
            pass
    overdue = next((why for when, why in deadlines(job, settings) if when <= now), None)
    if overdue:
        return _after_passing_fault(step, job, settings, now, f"the job {overdue}; it was stopped")
    if job.deleting and not job.alive:
        return _interrupted(step, job, now)
    if halt:
        return _halted(step)
    gives_back = give_back(job, settings)
    if gives_back is not None and gives_back <= now:
        return _gave_back(step, job, settings, now)
    return _going_on(step, job, now)


def _message(job: ObservedJob) -> str:
    return _last_message(job) or "the job failed and did not say why"


def _last_message(job: ObservedJob) -> str:
    return (job.termination.message if job.termination else "") or job.message


def _advanced(step: Step, job: ObservedJob) -> Step:
    """The step as far as the job brought it: where that is further than any before, earlier interruptions are past."""
    if job.progress is None or job.progress.step <= step.furthest:
        return step
    return step.model_copy(update={"furthest": job.progress.step, "interruptions": 0, "deletions": 0})


def _pause(times: int) -> timedelta:
    # The exponent is bounded: 2 ** 100 seconds would overflow.
    return min(FIRST_BACKOFF * 2 ** min(times - 1, 10), MAX_BACKOFF)


def _own_pause(times: int, job: str) -> timedelta:
    """A pause up to twice as long, that no other attempt has: of two that took each other's places one comes first."""
    share = int.from_bytes(hashlib.sha256(job.encode()).digest()[:4]) / 2**32
    return timedelta(seconds=round(_pause(times).total_seconds() * (1 + share)))


def _going_on(step: Step, job: ObservedJob, now: datetime) -> Step:
    step = _advanced(step, job)
    runs = job.state is JobState.RUNNING
    started = (seconds(job.started) if job.started else step.start_time or now) if runs else None
    return step.model_copy(
        update={
            "state": StepState.RUNNING if runs else StepState.STARTING,
            "start_time": started,
            "completion_time": None,
            "retry_time": None,
            "message": cut(job.message),
            "progress": _further(job.progress, step.progress),
        }
    )


def _further(seen: Progress | None, known: Progress | None) -> Progress | None:
    """The later of two looks at one attempt: who looks anew, or looks elsewhere, may have seen an earlier one."""
    if seen is None or known is None:
        return seen or known
    later = seen.time is None or known.time is None or seen.time > known.time
    if seen.total_steps != known.total_steps:  # a phase does one thing after another
        return seen if later else known
    return seen if seen.step > known.step or (seen.step == known.step and later) else known


def _succeeded(step: Step, job: ObservedJob, result: Any, now: datetime) -> Step:
    return step.model_copy(
        update={
            "state": StepState.SUCCEEDED,
            "attempt": max(step.attempt, job.attempt),
            "job_name": job.name,
            "cached": result.cached,
            "start_time": seconds(job.started) if job.started else step.start_time,
            "completion_time": _ended(job, now),
            "retry_time": None,
            "message": "",
            "progress": _all_of(_further(job.progress, step.progress)),
        }
    )


def _all_of(progress: Progress | None) -> Progress | None:
    """Progress once all is done: a log is only looked at now and then, so the last look may have been an early one."""
    if progress is None:
        return None
    early = {"loss": None} if progress.step < progress.total_steps else {}
    return progress.model_copy(update={"step": progress.total_steps, "eta_seconds": None, **early})


def _ended(job: ObservedJob, now: datetime) -> datetime:
    return min(seconds(job.ended), now) if job.ended else now


def _record(job: ObservedJob, exit_class: ExitClass, now: datetime, message: str) -> dict[str, Any]:
    """What every attempt leaves that did not succeed."""
    record = AttemptRecord(
        attempt=job.attempt,
        job_name=job.name,
        exit_class=exit_class.value,
        message=cut(message),
        pod=job.pod,
        node=job.node,
        completion_time=_ended(job, now),
    )
    return {
        "last_failure": record,
        "message": cut(message),
        "start_time": seconds(job.started) if job.started else None,
        "retry_time": None,
        "progress": None,
        "waiting_reason": None,
    }


def _failed(step: Step, job: ObservedJob, exit_class: ExitClass, now: datetime, message: str) -> Step:
    left = _record(job, exit_class, now, message)
    left |= {"state": StepState.FAILED, "completion_time": _ended(job, now)}
    return step.model_copy(update=left)


def _after_passing_fault(step: Step, job: ObservedJob, settings: PhaseSettings, now: datetime, message: str) -> Step:
    """After a passing fault: again after a pause, or no more where the limit is reached."""
    failures = step.failures + 1
    limit = settings.retry_limit
    if failures > limit:
        over = f"{message} (passing fault {failures}, retryLimit is {limit})" if limit else message
        return _failed(step, job, ExitClass.TRANSIENT, now, over).model_copy(update={"failures": failures})
    left = _record(job, ExitClass.TRANSIENT, now, message)
    left |= {"state": StepState.PENDING, "failures": failures, "retry_time": _ended(job, now) + _pause(failures)}
    return step.model_copy(update=left)


def _missing(step: Step, job: ObservedJob, now: datetime) -> Step:
    """After an attempt that missed an input: again after a pause, once that is made again; no more where that keeps
    going away.
    """
    if step.remakes >= MOST_REMAKES:
        look = "look for what removes or changes artifacts"
        why = f"{_message(job)} (made again {step.remakes} times, and gone or changed again: {look})"
        return _failed(step, job, ExitClass.TRANSIENT, now, why)
    left = _record(job, ExitClass.TRANSIENT, now, _message(job))
    remakes = step.remakes + 1
    left |= {"state": StepState.PENDING, "remakes": remakes, "retry_time": _ended(job, now) + _pause(remakes)}
    return step.model_copy(update=left)


def _interrupted(step: Step, job: ObservedJob, now: datetime) -> Step:
    """After an interruption: again, at once where it was the first since the step came further, else after a pause.
    A node that refuses every pod, an init container that fails each time, or a clean-up that deletes every job would
    make jobs without end.
    """
    step = _advanced(step, job)
    times = step.interruptions + 1
    deletions = step.deletions + job.deleting  # the step wants it, so it is not the operator that deletes it
    # What was done to it says more than where it stopped for that.
    told = [_deleted(deletions) if job.deleting else job.message, job.termination.message if job.termination else ""]
    said = "; ".join(filter(None, told if job.interrupted or job.deleting else [_last_message(job)]))
    left = _record(job, ExitClass.INTERRUPTED, now, f"interrupted: {said}" if said else "interrupted")
    begun = job.started or job.created
    again = seconds(begun) + INTERRUPTION_PACE if begun else None
    if times > 1:
        again = _ended(job, now) + _pause(times)
    left |= {"state": StepState.PENDING, "interruptions": times, "deletions": deletions}
    left |= {"retry_time": again if again and again > now else None}
    return step.model_copy(update=left)


def _gave_back(step: Step, job: ObservedJob, settings: PhaseSettings, now: datetime) -> Step:
    """After an attempt some of whose pods found no place: not at once again, because others may wait for its places.
    The step goes on waiting for what it waited for.
    """
    limit = settings.rendezvous_timeout_seconds
    why = f"{job.message}; gave back the places of its other pods after rendezvousTimeoutSeconds ({limit})"
    step = _interrupted(step, replace(job, interrupted=True, message=why), now)
    pause = _own_pause(step.interruptions, job.name)
    waiting = job.waiting.reason.value if job.waiting else None
    return step.model_copy(update={"retry_time": now + pause, "waiting_reason": waiting})


def _deleted(times: int) -> str:
    if times < 2:
        return "the job was deleted, and not by the operator"
    return (
        f"the job was deleted {times} times in a row, and not by the operator: look for what deletes jobs here, "
        "e.g. a clean-up, a policy or another controller"
    )


def _halted(step: Step) -> Step:
    gone = ("start_time", "retry_time", "progress", "waiting_reason")
    return step.model_copy(update={"state": StepState.PENDING, "message": "", **dict.fromkeys(gone)})


def _without_its_job(step: Step, now: datetime, *, halt: bool) -> Step:
    """The step whose job is not there: somebody has deleted it (see Backend.observe)."""
    if halt:
        return _halted(step)
    name, fingerprint = step.job_name or "", step.fingerprint or ""
    gone = ObservedJob(name, step.name, fingerprint, step.attempt, JobState.PENDING, alive=False, deleting=True)
    return _interrupted(step, gone, now)
