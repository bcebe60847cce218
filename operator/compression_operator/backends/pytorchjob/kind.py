"""PyTorchJob as a kind of job."""

from compression_operator.api.job_kinds import JOB_KINDS
from compression_operator.backends.kind import JobKind
from compression_operator.backends.pods.fields import Json, mapping

from .manifest import pytorch_job
from .view import keep, view

INFO = JOB_KINDS["PyTorchJob"]

JOB_NAME = f"{INFO.labels}/job-name"
REPLICA_TYPE = f"{INFO.labels}/replica-type"
"""Labels that the training operator puts on pods."""

FAILED_CREATE = "FailedCreatePod"
"""Reason of the training operator's Events."""

INIT_CONTAINER = "init-pytorch"
"""The training operator's own, in workers: it waits until it can look up the master's name."""

UNFOUND = "; it could not look up the master's name: has the master not started, or does a NetworkPolicy stop DNS?"

HINT = (
    f"; the init container {INIT_CONTAINER} is the training operator's, which gives it no securityContext: give it one "
    "by the training operator's template for it (README, On a cluster)"
)


def leads(pod: Json) -> bool:
    """Whether the pod is the master."""
    return mapping(pod, "metadata", "labels").get(REPLICA_TYPE) == "master"


def explain(words: str) -> str:
    """Why a pod was refused, with what to do where that was for the training operator's own container."""
    return f"{words}{HINT}" if "violates PodSecurity" in words and f'"{INIT_CONTAINER}"' in words else words


def event_fields(name: str) -> str:
    """Selects the Events in which the training operator leaves the API server's words."""
    return f"regarding.kind=PyTorchJob,regarding.name={name},reason={FAILED_CREATE}"


PYTORCHJOB = JobKind(
    info=INFO,
    version="v1",
    job_label=JOB_NAME,
    build=pytorch_job,
    view=view,
    keep=keep,
    leads=leads,
    event_fields=event_fields,
    explain=explain,
    init_failures={INIT_CONTAINER: UNFOUND},
)

PYTORCHJOBS = PYTORCHJOB.resource
