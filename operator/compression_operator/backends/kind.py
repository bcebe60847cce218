"""What the cluster code knows of a kind of job: the seam between it and PyTorchJob and the others (see kinds.py)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from compression_operator.api.job_kinds import JobKindInfo
from compression_operator.api.run import CompressionRun
from compression_operator.core.jobs import Job
from compression_operator.kube.client import Permission, Resource

from .pods.fields import Json, controller_of, mapping, name_of
from .pods.platform_defaults import JobDefaults


@dataclass(frozen=True)
class Condition:
    """What a job's controller says of it in one respect."""

    holds: bool = False
    since: datetime | None = None  # its last transition, whether it holds or not; None: it never held
    message: str = ""


NEVER = Condition()


@dataclass(frozen=True)
class JobView:
    """What a job says, in the words of no kind."""

    pods: int  # that it is to have
    suspend: bool  # whether its spec has it wait, as a queue asks
    suspended: Condition = NEVER  # whether it does
    running: Condition = NEVER
    succeeded: Condition = NEVER
    failed: Condition = NEVER
    completed: datetime | None = None


def _controls(job: Json, pod: Json) -> bool:
    return controller_of(pod) == mapping(job, "metadata").get("uid")


def _unchanged(words: str) -> str:
    return words


@dataclass(frozen=True, kw_only=True, eq=False)
class JobKind:
    """A kind of job. The functions are pure; a pod or a job is its JSON."""

    info: JobKindInfo
    version: str  # of its API
    job_label: str  # of pods: the name of their job
    build: Callable[[CompressionRun, Job, str, JobDefaults], dict[str, Any]]
    """(run, job, image, defaults) -> the manifest of the job, controlled by its run."""

    view: Callable[[Json], JobView]
    keep: Callable[[Json], dict[str, Any]]
    """The part of a job beside its metadata that `view` reads: the rest isn't worth its memory."""

    leads: Callable[[Json], bool]
    """Whether a pod is the one that publishes the artifact."""

    owns: Callable[[Json, Json], bool] = _controls
    """(job, pod) -> whether the pod, which names the job, is its own. By default: it controls it."""

    slot: Callable[[Json], str] = name_of
    """A pod's place in its job, which a pod that is made anew has too. By default: its name."""

    event_fields: Callable[[str], str]
    """Name of a job -> field selector of the Events that say why a pod of it cannot be made."""

    events_regard_job: bool = True
    """Whether these Events are the job's own; else of what it made, whose UID nobody knows."""

    explain: Callable[[str], str] = _unchanged
    """What an Event says of why a pod cannot be made, with what to do about it."""

    init_failures: Mapping[str, str] = field(default_factory=dict[str, str])
    """By init container that the kind's controller adds: what to say where it fails."""

    @property
    def name(self) -> str:
        """As in spec.backend."""
        return self.info.name

    @property
    def resource(self) -> Resource:
        return Resource(self.info.group, self.version, self.info.plural)

    @property
    def permission(self) -> Permission:
        """What the operator does with its objects, in every namespace that it watches."""
        return Permission(self.info.group, self.info.plural, ("get", "list", "watch", "create", "patch", "delete"))
