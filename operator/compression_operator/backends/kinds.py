"""The kinds of job: a new one is a folder here, a line in `KINDS`, its words in api/job_kinds.py, and its rights in the
chart's templates/_helpers.tpl.
"""

from compression_operator.api.run import CompressionRun
from compression_operator.kube.cache import Body, Key
from compression_operator.kube.client import COMMON_PERMISSIONS

from .kind import JobKind
from .pytorchjob.kind import PYTORCHJOB

KINDS: dict[str, JobKind] = {kind.name: kind for kind in (PYTORCHJOB,)}
"""By name, as in spec.backend."""


PERMISSIONS = (*COMMON_PERMISSIONS, *(kind.permission for kind in KINDS.values()))
"""All that the operator may ask of the API server: leases in its own namespace, the rest in all that it watches."""


def kind_of(run: CompressionRun) -> JobKind:
    """The kind of the jobs that the run gets from now on."""
    return KINDS[run.spec.backend]


def kinds_for(run: CompressionRun) -> list[JobKind]:
    """Every kind of which the run may have jobs, because its backend may have been edited: today's first."""
    first = kind_of(run)
    return [first, *(kind for kind in KINDS.values() if kind is not first)]


def kind_of_pod(pod: Body) -> JobKind | None:
    """The kind of the job that a pod names as its own; None where it names none."""
    labels = pod["metadata"].get("labels", {})
    return next((kind for kind in KINDS.values() if kind.job_label in labels), None)


def job_of(pod: Body) -> Key:
    """The job that a pod names as its own; an empty name where it names none."""
    kind, meta = kind_of_pod(pod), pod["metadata"]
    return meta["namespace"], "" if kind is None else meta["labels"][kind.job_label]


def pod_group(body: Body) -> str | None:
    """Pods by job: the namespace and the job's name."""
    namespace, job = job_of(body)
    return f"{namespace}/{job}" if job else None
