"""What the contract says of jobs that have ended, for the world of the reconciler's tests: said apart from its code."""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from compression_operator.api.run import CompressionRun
from compression_operator.api.status import CompressionRunStatus, StepState
from compression_operator.core.jobs import Job, ObservedJob, Wait, WaitReason
from compression_pipeline.config import ExitClass


def end_untold(status: CompressionRunStatus, job: ObservedJob, halted: Collection[str]) -> str | None:
    """What the status lacks of a job's end that the step still needs; None where it tells enough for the job to go.

    `halted`: jobs that a suspension told to stop, whose end nobody has to know.
    """
    step = status.step(job.step)
    if job.ended_as is None or step is None or step.fingerprint != job.fingerprint:
        return None
    if step.state is StepState.SUCCEEDED or job.attempt <= step.lost_attempt:  # what it made is gone
        return None
    if job.ended_as is ExitClass.DONE and job.termination and job.termination.result:
        return f"{job.step} is not done, though it is"
    if job.attempt > step.attempt or (step.state.active and step.job_name == job.name):
        return f"{job.step} goes on as if it had not ended"
    told = step.last_failure is not None and step.last_failure.job_name == job.name
    if job.attempt == step.attempt and not told and job.name not in halted:
        return "nothing tells why it failed"
    return None


def has_a_history(status: CompressionRunStatus, job: ObservedJob) -> bool:
    """Whether the job has ended, and its step is still about the same: it stays to be looked at."""
    step = status.step(job.step)
    return not job.live and not job.deleting and step is not None and step.fingerprint == job.fingerprint


def time_is_over(run: CompressionRun, job: ObservedJob, jobs: Iterable[ObservedJob], now: datetime) -> bool:
    """Whether an ended job has had its time, or enough newer ones of its step have ended."""
    newer = [
        one for one in jobs if one.step == job.step and one.attempt > job.attempt and has_a_history(run.status, one)
    ]
    left = seconds_left(run, job, now)
    return len(newer) >= run.spec.job_history_limit or (left is not None and left <= 0)


def seconds_left(run: CompressionRun, job: ObservedJob, now: datetime) -> float | None:
    """Seconds until the job has had its time, which begins with its end, or with what the status tells of that where
    the job itself (its pod was lost) does not; None where neither does.
    """
    ttl, step = timedelta(seconds=run.spec.ttl_seconds_after_finished), run.status.step(job.step)
    ended = job.ended
    if ended is None and step is not None:
        failure = step.last_failure
        told_of = failure is not None and failure.job_name == job.name
        ended = failure.completion_time if failure and told_of else step.completion_time
        ended = ended if told_of or step.job_name == job.name else None
    return (ended + ttl - now).total_seconds() if ended else None


def lingers(status: CompressionRunStatus, job: ObservedJob, now: datetime) -> bool:
    """Whether something of the job lives on although its step has been done by it for a minute."""
    left = seconds_to_linger(status, job, now)
    return left is not None and left <= 0


def seconds_to_linger(status: CompressionRunStatus, job: ObservedJob, now: datetime) -> float | None:
    """Seconds that are left to the rest of a job whose result is in the status; None: of any other."""
    step = status.step(job.step)
    if step is None or step.state is not StepState.SUCCEEDED or step.job_name != job.name or not job.live:
        return None
    assert step.completion_time
    past = (now - step.completion_time).total_seconds()
    return 60 - past if past >= 0 else 0.0


def takes_a_slot(job: Job, shown: ObservedJob, other: Job) -> bool:
    """Whether a job is one too many for `other`, which may not need the GPU that it waits for."""
    waits_for_a_gpu = job.settings.gpus_per_node > 0 and shown.waiting is not None
    return other.settings.gpus_per_node > 0 or not waits_for_a_gpu


def finds_no_place(pod: str, now: datetime) -> Wait:
    """What the scheduler says of a pod that it finds no node for."""
    why = f"pod {pod} cannot be scheduled: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    return Wait(WaitReason.UNSCHEDULABLE, why, told_from=now, counts_from=now + timedelta(seconds=60))
