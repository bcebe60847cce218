"""How long jobs that have ended stay to be looked at. Pure.

Only jobs go: never what they made, never the run. A step stands by its status, so it is not run again for want of its
job; and what a job told must stand there first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from compression_operator.api.status import Step, StepState

from .jobs import ObservedJob


@dataclass(frozen=True)
class Retention:
    """What the spec says of jobs that have ended."""

    history_limit: int  # of each step
    ttl: timedelta  # since a job ended


@dataclass(frozen=True)
class Expiry:
    """An ended job's time to go, and why."""

    job: str
    step: str
    when: datetime
    why: str


def expiries(
    steps: Mapping[str, Step], jobs: Mapping[str, ObservedJob], retention: Retention, now: datetime
) -> Iterator[Expiry]:
    """When each ended job goes whose end stands in its step's status; for one that has no time of its end only the
    number of jobs counts.
    """
    ended = [
        job for job in jobs.values() if not job.live and not job.deleting and _is_recorded(steps.get(job.step), job)
    ]
    ended.sort(key=lambda job: (job.step, -job.attempt))
    for name, of_step in groupby(ended, key=lambda job: job.step):
        yield from _of_step(steps[name], list(of_step), retention, now)


def _of_step(step: Step, newest_first: Sequence[ObservedJob], retention: Retention, now: datetime) -> Iterator[Expiry]:
    limit, ttl = retention.history_limit, retention.ttl
    for job in newest_first[limit:]:
        yield Expiry(job.name, step.name, now, f"jobHistoryLimit is {limit}")
    for job in newest_first[:limit]:
        ended = job.ended or _recorded_end(step, job)
        if ended is not None:
            why = f"ttlSecondsAfterFinished ({ttl.total_seconds():.0f}) is over"
            yield Expiry(job.name, step.name, ended + ttl, why)


def _is_recorded(step: Step | None, job: ObservedJob) -> bool:
    """Whether the step's status holds all that it will ever hold of the job.

    Jobs of another fingerprint are another matter: they are stopped, or kept while the right one isn't known.
    """
    if step is None or step.fingerprint != job.fingerprint:
        return False
    if step.state is StepState.SUCCEEDED:
        return True
    return job.attempt <= step.attempt and not (step.state.active and step.job_name == job.name)


def _recorded_end(step: Step, job: ObservedJob) -> datetime | None:
    if step.last_failure is not None and step.last_failure.job_name == job.name:
        return step.last_failure.completion_time
    return step.completion_time if step.job_name == job.name else None
