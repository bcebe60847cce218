"""What one pod tells of a job, read from its JSON. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from compression_operator.api.templates import CONTAINER
from compression_operator.backends.kind import JobKind
from compression_operator.core.jobs import Wait, WaitReason
from compression_operator.joblog.termination import read_termination
from compression_pipeline.config import ExitClass, Termination

from .fields import EMPTY, Json, kept_metadata, mapping, mappings, when

UNPULLED = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "ImageInspectError", "InvalidImageName"})
STUCK = {
    "CreateContainerConfigError": WaitReason.CONTAINER_CONFIG_ERROR,
    "CreateContainerError": WaitReason.CONTAINER_START_FAILED,
    "RunContainerError": WaitReason.CONTAINER_START_FAILED,
}
"""Waiting reasons that a person has to look at."""

PATIENCE = timedelta(seconds=60)
"""Time after which a wait is a problem: a Secret that is made a moment after the run, a node that frees a GPU."""

CATCH_UP = timedelta(seconds=30)
"""Time for which a job's word is taken to be ahead of what is known of its pods."""

CREATING = frozenset({"ContainerCreating", "PodInitializing"})
"""Waiting reasons while images are pulled or volumes are mounted: the kubelet does not say which."""

LONG_PULL = timedelta(minutes=15)
"""Time to pull an image of 20 GB with some to spare; until then a pod that is being created is no problem."""

UNANSWERED = timedelta(seconds=60)
"""Time beyond its end after which a pod that never ran is not waited for: nobody is there to say that it is gone."""


def seen_pod(body: Json) -> dict[str, Any]:
    """The part of a pod that is read here."""
    node = mapping(body, "spec").get("nodeName")
    return {
        "metadata": kept_metadata(body),
        "spec": {"nodeName": node} if node else {},
        "status": dict(mapping(body, "status")),
    }


@dataclass(frozen=True)
class PodView:
    """One pod of a job."""

    name: str
    uid: str
    slot: str  # its place in the job: its successor's too
    node: str | None
    leads: bool  # whether it is the one that publishes the artifact
    created: datetime | None
    placed: datetime | None  # when it got its node
    deleted: datetime | None  # when it was asked to go
    started: datetime | None  # of the pipeline's container
    ended: datetime | None
    exit_code: int | None
    termination: Termination | None  # where the launcher wrote one: the log's end stands there where it could not
    last_words: str  # why the container ended, where it wrote no termination message
    alive: bool  # whether a process of it may still run
    lost: bool  # its node was given up, so that nobody will ever tell how it ended
    disruption: str  # what the cluster did to it; empty where it was left alone
    waiting: Wait | None  # what keeps it from running

    @property
    def exit_class(self) -> ExitClass | None:
        """How its container ended; None while it has not."""
        if self.exit_code is None:
            return None
        return self.termination.exit_class if self.termination else ExitClass.of_code(self.exit_code)


def view(pod: Json, now: datetime, kind: JobKind) -> PodView:
    """Read a pod of a job of this kind."""
    meta, status, name = mapping(pod, "metadata"), mapping(pod, "status"), str(mapping(pod, "metadata").get("name"))
    container = next((c for c in mappings(status, "containerStatuses") if c.get("name") == CONTAINER), EMPTY)
    terminated = mapping(container, "state", "terminated")
    asked = when(meta.get("deletionTimestamp"))
    if asked is not None:
        asked -= timedelta(seconds=int(meta.get("deletionGracePeriodSeconds") or 0))
    lost = _node_lost(pod, now)
    return PodView(
        name=name,
        uid=str(meta.get("uid")),
        slot=kind.slot(pod),
        node=mapping(pod, "spec").get("nodeName"),
        leads=kind.leads(pod),
        created=when(meta.get("creationTimestamp")),
        placed=_scheduled_at(pod),
        deleted=asked,
        started=when(mapping(container, "state", "running").get("startedAt") or terminated.get("startedAt")),
        ended=when(terminated.get("finishedAt")),
        exit_code=terminated.get("exitCode"),
        termination=read_termination(str(terminated.get("message") or "")),
        last_words=_last_words(terminated),
        alive=not lost and _alive(status),
        lost=lost,
        disruption=f"pod {name}: its node {mapping(pod, 'spec').get('nodeName')} is lost"
        if lost
        else _disruption(status, terminated, name, kind.init_failures),
        waiting=_waiting(pod, name, now),
    )


def _scheduled_at(pod: Json) -> datetime | None:
    if not mapping(pod, "spec").get("nodeName"):
        return None
    scheduled = _condition(mapping(pod, "status"), "PodScheduled")
    return when(scheduled.get("lastTransitionTime") or mapping(pod, "metadata").get("creationTimestamp"))


def _alive(status: Json) -> bool:
    """Whether a process of the pod may run; where all containers have ended nothing does."""
    if status.get("phase") in ("Succeeded", "Failed"):
        return False
    containers = mappings(status, "containerStatuses")
    return not containers or not all(mapping(container, "state", "terminated") for container in containers)


def _node_lost(pod: Json, now: datetime) -> bool:
    """Whether the control plane has given up on the pod's node: the pod cannot be asked, so it counts as gone.

    It first finds the node silent, and takes Ready from the pod's conditions; unlike the kubelet it gives no reason.
    When the taint of the silent node has been tolerated for long enough, it deletes the pod, which then stays as it is
    until the node is back or removed. A pod that never was Ready has nothing to be taken: its time tells.
    """
    deadline = when(mapping(pod, "metadata").get("deletionTimestamp"))
    if deadline is None or not mapping(pod, "spec").get("nodeName"):
        return False
    status = mapping(pod, "status")
    if _node_silent(status):
        return True
    ran = any(
        mapping(container, "state", state)
        for kind in ("initContainerStatuses", "containerStatuses")
        for container in mappings(status, kind)
        for state in ("running", "terminated")
    )
    return not ran and now > deadline + UNANSWERED


def _node_silent(status: Json) -> bool:
    ready = _condition(status, "Ready")
    return ready.get("status") == "False" and not ready.get("reason")


def _disruption(status: Json, terminated: Json, name: str, init_failures: Mapping[str, str]) -> str:
    target = _condition(status, "DisruptionTarget")
    if target.get("status") == "True":
        return _sentence(f"pod {name}: {target.get('reason')}", target.get("message"))
    if terminated.get("reason") == "ContainerStatusUnknown":
        return _sentence(f"pod {name}: its node lost sight of it", terminated.get("message"))
    if status.get("phase") != "Failed":
        return ""
    for container in mappings(status, "initContainerStatuses"):
        ended = mapping(container, "state", "terminated")
        if ended.get("exitCode"):
            what = f"pod {name}: init container {container.get('name')} ended with code {ended['exitCode']}"
            return _sentence(what, _tail(ended)) + init_failures.get(str(container.get("name")), "")
    # The kubelet ends or refuses pods in many words (Evicted, NodeShutdown, Terminated, OutOfcpu, NodeAffinity,
    # UnexpectedAdmissionError, ...); what all have in common is a reason of the pod itself.
    if status.get("reason") and status.get("reason") != "DeadlineExceeded":
        return _sentence(f"pod {name}: {status['reason']}", status.get("message"))
    return "" if terminated else f"pod {name} failed before it ran"


def _last_words(terminated: Json) -> str:
    if not terminated.get("exitCode"):
        return ""
    if terminated.get("reason") == "OOMKilled":
        return "the container used more memory than its limit and was killed (OOMKilled): raise its memory limit"
    return _sentence(f"exit code {terminated['exitCode']}", _tail(terminated))


def _tail(terminated: Json) -> str:
    lines = str(terminated.get("message") or "").strip().splitlines()
    return lines[-1][:500] if lines else ""


def _waiting(pod: Json, name: str, now: datetime) -> Wait | None:
    """Why the pod does not run, in the scheduler's or the kubelet's words."""
    status = mapping(pod, "status")
    if _node_silent(status):
        since = when(_condition(status, "Ready").get("lastTransitionTime"))
        return wait(WaitReason.NODE_UNREACHABLE, f"pod {name}: its node does not answer", since or now)
    scheduled = _condition(status, "PodScheduled")
    known = when(scheduled.get("lastTransitionTime")) or when(mapping(pod, "metadata").get("creationTimestamp")) or now
    if scheduled.get("status") == "False":
        why = f"pod {name} cannot be scheduled: {scheduled.get('message') or scheduled.get('reason')}"
        found = wait(WaitReason.UNSCHEDULABLE, why, known)
        # Where a gate holds it back, somebody wants it to wait.
        return replace(found, counts_from=None) if scheduled.get("reason") == "SchedulingGated" else found
    ends = [mapping(c, "state", "terminated").get("finishedAt") for c in mappings(status, "initContainerStatuses")]
    initialized = max(filter(None, map(when, ends)), default=None)
    since = max(known, initialized or known)  # an init container may have been at work until then
    for container in (*mappings(status, "initContainerStatuses"), *mappings(status, "containerStatuses")):
        waiting = mapping(container, "state", "waiting")
        if waiting.get("reason") in UNPULLED:
            # The kubelet's words change back and forth between an error and the pause after it: ours do not.
            why = str(waiting.get("message") or "").rpartition("ErrImagePull: ")[2]
            what = _sentence(f"pod {name}: the image {container.get('image')} cannot be pulled", why)
            return wait(WaitReason.IMAGE_PULL_FAILED, what, since)
        if waiting.get("reason") in STUCK:
            what = _sentence(f"pod {name}: {waiting['reason']}", waiting.get("message"))
            return wait(STUCK[waiting["reason"]], what, since)
    return _creating(status, name, since, initialized is not None)


def _creating(status: Json, name: str, since: datetime, sandboxed: bool) -> Wait | None:
    """The wait of a pod whose pipeline's container is neither there nor refused; `sandboxed`: an init container has
    run. None while one runs.
    """
    ours = next((c for c in mappings(status, "containerStatuses") if c.get("name") == CONTAINER), EMPTY)
    before = mappings(status, "initContainerStatuses")
    # Sidecars go on while the pod counts as initialized.
    initializing = _condition(status, "Initialized").get("status") != "True"
    running = initializing and any(mapping(container, "state", "running") for container in before)
    if mapping(ours, "state", "waiting").get("reason") not in CREATING or running:
        return None
    ready = _condition(status, "PodReadyToStartContainers")
    # False proves nothing: kubelets tell of the sandbox, for which volumes are mounted, only once images are pulled.
    mounted = ready.get("status") == "True"
    since = max(since, (when(ready.get("lastTransitionTime")) if mounted else None) or since)
    what = f"pod {name} has not started since {since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC: its image is still being "
    what += "pulled, it seems" if mounted or sandboxed else "pulled, or a volume of it cannot be mounted"
    what += f"; `kubectl describe pod {name}` says"
    found = wait(WaitReason.CONTAINER_CREATING, what, since, told_after=PATIENCE)
    return replace(found, counts_from=since + LONG_PULL)


def wait(reason: WaitReason, message: str, since: datetime, *, told_after: timedelta = timedelta(0)) -> Wait:
    """A wait that counts once it has lasted for a while."""
    return Wait(reason, message, told_from=since + told_after, counts_from=since + max(PATIENCE, told_after))


def _condition(status: Json, kind: str) -> Json:
    return next((c for c in mappings(status, "conditions") if c.get("type") == kind), EMPTY)


def _sentence(what: str, why: Any) -> str:
    return f"{what}: {why}" if why else what
