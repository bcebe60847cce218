"""The vocabulary between the reconciler and the backends: jobs wanted, jobs observed, actions decided."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from compression_operator.api.attempts import Progress
from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.api.run import CompressionRun
from compression_operator.api.status import CompressionRunStatus
from compression_pipeline.config import PRECISION_VARIABLE, ExitClass, JobConfig, Phase, Precision, Termination

MOUNTED_CLAIMS = "/sources"
"""Where pods find the claims that sources name, one folder each, read-only."""


class JobState(StrEnum):
    """What a backend knows of a job."""

    PENDING = "Pending"  # created, no process runs yet
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class Job:
    """A job to create: one attempt at one step. Backends turn it into an object of a cluster or a process."""

    name: str
    step: str
    phase: Phase
    student: str | None
    attempt: int
    fingerprint: str
    config: JobConfig  # `store`, `source_roots` and `aside` are the backend's to fill in
    settings: PhaseSettings
    precision: Precision | None = None  # that its key counts on, where its config says none

    @property
    def variables(self) -> dict[str, str]:
        """What every backend tells it beside its config, as environment variables."""
        return {PRECISION_VARIABLE: self.precision.value} if self.precision else {}


class WaitReason(StrEnum):
    """What keeps a job's pods from running: the reason of conditions and Events."""

    UNSCHEDULABLE = "Unschedulable"
    NODE_UNREACHABLE = "NodeUnreachable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    CONTAINER_CREATING = "ContainerCreating"  # the kubelet's word: it pulls an image or mounts volumes
    CONTAINER_START_FAILED = "ContainerStartFailed"
    PODS_NOT_CREATED = "PodsNotCreated"
    JOB_NAME_TAKEN = "JobNameTaken"  # by a job that isn't the run's, before there are pods
    JOB_NOT_RECOGNIZED = "JobNotRecognized"  # the step's own, whose labels or ownerReference somebody removed


@dataclass(frozen=True)
class Wait:
    """What a job waits for that somebody should know of; it may yet come by itself."""

    reason: WaitReason
    message: str
    told_from: datetime  # until then it is worth no word
    counts_from: datetime | None  # until then it is everyday life, from then on a problem; None: it never is


@dataclass(frozen=True)
class ObservedJob:
    """A job as a backend found it."""

    name: str
    step: str
    fingerprint: str
    attempt: int
    state: JobState
    alive: bool  # whether any of its pods or processes may still run, or still writes a checkpoint
    ours: bool = True  # owner UID and labels match this run; a job that doesn't is never touched
    stripped: bool = False  # not ours because somebody removed labels or the ownerReference of a job that was
    deleting: bool = False
    created: datetime | None = None
    started: datetime | None = None  # when its first process ran
    ended: datetime | None = None
    last_event: datetime | None = None  # newest sign of life on its log
    suspended_seconds: float = 0.0  # time that does not count as running (Kueue, suspension)
    waited_seconds: float = 0.0  # for another job, which makes the same: no running time either, but it must not hang
    termination: Termination | None = None
    exit_code: int | None = None
    interrupted: bool = False  # evicted, preempted, lost node, vanished pod, failed init container
    message: str = ""  # why it waits, or why it failed where no termination message tells
    waiting: Wait | None = None  # what keeps its pods from running
    half_placed: datetime | None = None  # since when some of its pods have places while the scheduler finds others none
    pod: str | None = None
    node: str | None = None
    progress: Progress | None = None

    @property
    def ended_as(self) -> ExitClass | None:
        """How it ended, or None while it has not: the termination message first, then the exit code.

        A job that lost a pod has ended, whatever its peers say of it; only a user's mistake is still one then.
        """
        if self.state is JobState.SUCCEEDED:
            return ExitClass.DONE
        if self.termination is not None and self.termination.exit_class is ExitClass.USER_ERROR:
            return ExitClass.USER_ERROR
        if self.interrupted:
            return ExitClass.INTERRUPTED
        if self.state is not JobState.FAILED:
            return None
        if self.termination is not None:
            return self.termination.exit_class
        return ExitClass.TRANSIENT if self.exit_code is None else ExitClass.of_code(self.exit_code)

    @property
    def live(self) -> bool:
        """Whether it may still do something: it has not ended, or what it started has not."""
        return self.alive or (self.ended_as is None and not self.deleting)


@dataclass(frozen=True)
class CreateJob:
    """Create this job; an existing job of the same name and owner is the same job."""

    job: Job


@dataclass(frozen=True)
class DeleteJob:
    """Stop and remove this job; its processes get SIGTERM and the grace period."""

    name: str
    step: str
    reason: str  # told in the log and in an Event


@dataclass(frozen=True)
class RunEvent:
    """What happened to a run: a Kubernetes Event on a cluster, a line locally."""

    type: str  # Normal or Warning
    reason: str  # CamelCase
    message: str
    step: str | None = None  # what it is about, where it isn't the whole run
    job: str | None = None


Action = CreateJob | DeleteJob


@dataclass(frozen=True)
class Decision:
    """What to do now, what to write, and when to look again at the latest."""

    status: CompressionRunStatus
    actions: tuple[Action, ...] = ()
    events: tuple[RunEvent, ...] = ()
    look_again_seconds: float | None = None  # None: only when something happens
    blocked: tuple[str, ...] = ()  # steps that wait for another job to be gone


class Backend(Protocol):
    """What runs jobs. Every call may be repeated and must then change nothing."""

    async def observe(self, run: CompressionRun) -> list[ObservedJob]:
        """Every job of the run, its processes looked at. What is told of a job may be older than the truth, but a job
        is never missing while it is there: neither one that this process has made nor one that a step of the status
        names as under way. So a step whose job is missing has lost it, and its next attempt cannot become a second one.
        """
        ...

    async def create(self, run: CompressionRun, job: Job) -> None:
        """Create the job, or find that it exists."""
        ...

    async def delete(self, run: CompressionRun, name: str) -> bool:
        """Stop the job (SIGTERM, grace period, SIGKILL) and forget it; returns at once whether there was one."""
        ...
