"""What is true of a job, and what is decided of jobs, for the world of the reconciler's tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from compression_operator.core.jobs import CreateJob, Decision, Job, ObservedJob
from compression_pipeline.config import Cache


@dataclass
class Truth:
    """A job as it is."""

    job: Job
    seen: ObservedJob  # as an up-to-date listing would show it
    changed: datetime  # real time of the first change that the listing has not shown
    shown: ObservedJob | None = None  # as the listing shows it
    gone: bool = False  # removed; the listing may still show it

    @property
    def live(self) -> bool:
        return not self.gone and self.seen.live


def jobs_wanted(decision: Decision) -> list[Job]:
    return [action.job for action in decision.actions if isinstance(action, CreateJob)]


def takes(job: Job, artifact: str, digests: Mapping[str, str]) -> bool:
    """Whether the job takes such an input as stands in the store."""
    told = job.config.expected.get(artifact)
    return digests[artifact] == told if told else job.config.cache is Cache.STORE


def adopts(job: Job, digest: str) -> bool:
    """Whether the job takes for its own an artifact that is there already. What others wrote is told apart."""
    if job.config.cache is Cache.STORE:
        return True
    assert all(told.startswith("made by ") for told in job.config.known), "vouched for by this run alone"
    return digest in job.config.known


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]
