"""What a job of any kind and its pods tell, as an ObservedJob. Pure functions from JSON to values.

A controller's own verdict is not enough. The training operator recreates a vanished pod inside the same job, calls a
job failed while a pod of it still writes a checkpoint, and learns two or three seconds late that a container has ended.
So the pods are looked at, one by one. The two come by watches of their own: where the job's word is ahead of the pods',
the pods' is waited for.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from compression_operator.api.run import GROUP
from compression_operator.core.jobs import JobState, ObservedJob, Wait, WaitReason
from compression_pipeline.config import ExitClass

from .kind import JobKind, JobView
from .pods.fields import Json, controller_of, kept_metadata, mapping, when
from .pods.podview import CATCH_UP, PodView, view, wait

ENDLESS = datetime.max.replace(tzinfo=UTC)

ADMISSION = "a quota, a LimitRange or another rule of admission"
"""What keeps pods from being made; the job's controller tells it in an Event."""

SKEW = timedelta(seconds=60)
"""What the clocks of the API server, a controller and a node are off by at most. They need not agree: the
times of two of them are only compared with this margin.
"""

SETTLING = timedelta(seconds=5)
"""Time for the other pods to say how they ended, once one has failed: the one that failed first knows why."""


FirstPods = Mapping[str, str | None]
"""UIDs of the pods that a job began with, by their place in it. Empty: of one that nobody saw; None: of one that its
queue took.
"""

NONE_YET: FirstPods = MappingProxyType({})


def seen_job(kind: JobKind, body: Json) -> dict[str, Any]:
    """The part of a job that is read here; the rest isn't worth its memory."""
    return {"metadata": kept_metadata(body), **kind.keep(body)}


def first_pods(kind: JobKind, body: Json, pods: Sequence[Json], known: FirstPods) -> FirstPods:
    """The pods that the job began with, given those that are known from earlier looks.

    Where none are known, because this operator has only just started, a pod that was made long after the job began to
    run is another's successor, whose UID nobody knows any more. A queue that suspends a job takes its pods: it begins
    anew.
    """
    seen = kind.view(body)
    ran = seen.running.since if seen.running.holds and not known else None
    found: dict[str, str | None] = {}
    for pod in pods:
        meta = mapping(pod, "metadata")
        created = when(meta.get("creationTimestamp"))
        if kind.owns(body, pod) and "deletionTimestamp" not in meta:
            found[kind.slot(pod)] = "" if ran and created and created > ran + SKEW else str(meta.get("uid"))
    if seen.suspend:
        return dict.fromkeys({**known, **found})
    return {**found, **{name: first for name, first in known.items() if first is not None or name not in found}}


def lacks_pod(kind: JobKind, body: Json, pods: Sequence[Json], first: FirstPods) -> bool:
    """Whether a pod that the job had is not there: it is told to have ended in a moment, is made anew, or cannot be.
    `pods`, `first`: as for observe_job.
    """
    return _lacks_one(kind.view(body), {kind.slot(pod) for pod in pods if kind.owns(body, pod)}, first)


def observe_job(
    kind: JobKind,
    body: Json,
    pods: Sequence[Json],
    *,
    run_uid: str,
    now: datetime,
    first: FirstPods = NONE_YET,
    missed: datetime | None = None,
) -> ObservedJob:
    """The job as it stands.

    `pods` are those that carry its name; only those that it owns count. `first`: those that it began with (see
    first_pods). Where there were some and there are none, they are gone, and not merely unknown yet. `missed`: when it
    was first seen to lack one that it had; nothing on the job tells.
    """
    meta, labels = mapping(body, "metadata"), mapping(body, "metadata", "labels")
    job = _Job(
        kind=kind,
        name=str(meta.get("name")),
        said=kind.view(body),
        deleting="deletionTimestamp" in meta,
        created=when(meta.get("creationTimestamp")),
        pods=[view(pod, now, kind) for pod in pods if kind.owns(body, pod)],
        first=first,
        missed=missed,
    )
    own = job.pods
    state, interruption = _state(job, now)
    decisive_pod = job.decisive_pod
    shown = decisive_pod or next((pod for pod in own if pod.leads), None)
    failed = state is JobState.FAILED
    over = failed or state is JobState.SUCCEEDED
    attempt, owner = _attempt(labels), controller_of(body)
    labelled = f"{GROUP}/fingerprint" in labels and attempt is not None
    return ObservedJob(
        name=job.name,
        step=str(labels.get(f"{GROUP}/step", "")),
        fingerprint=str(labels.get(f"{GROUP}/fingerprint", "")),
        attempt=attempt or 0,
        state=state,
        alive=any(pod.alive for pod in own),
        ours=owner == run_uid and labelled,
        stripped=(owner == run_uid and not labelled) or (owner is None and labelled),
        deleting=job.deleting,
        created=job.created,
        started=job.started,
        ended=_ended(job, decisive_pod) if over else None,
        termination=decisive_pod.termination if decisive_pod and over else None,
        exit_code=decisive_pod.exit_code if decisive_pod and over else None,
        interrupted=failed and bool(interruption),
        message=_message(job, state, interruption, decisive_pod, now),
        waiting=None if over else job.waiting,
        half_placed=None if over else job.half_placed,
        pod=shown.name if shown else None,
        node=shown.node if shown else None,
    )


def left_over(kind: JobKind, pods: Sequence[Json], now: datetime) -> ObservedJob | None:
    """A job that is gone while pods of it still write a checkpoint: it is being deleted, and not by us, who keep a job
    in sight until its pods have ended. None where no pod lives that a job owns.
    """
    living = [pod for pod in pods if controller_of(pod) is not None and view(pod, now, kind).alive]
    if not living:
        return None
    labels = mapping(living[0], "metadata", "labels")
    return ObservedJob(
        name=str(labels.get(kind.job_label)),
        step=str(labels.get(f"{GROUP}/step", "")),
        fingerprint=str(labels.get(f"{GROUP}/fingerprint", "")),
        attempt=_attempt(labels) or 0,
        state=JobState.PENDING,
        alive=True,
        deleting=True,
        message="the job was deleted, and not by the operator; waits for its pods to end",
    )


def _attempt(labels: Json) -> int | None:
    """The number of the attempt; None where the labels do not say one."""
    attempt = str(labels.get(f"{GROUP}/attempt", ""))
    return int(attempt) if attempt.isdecimal() else None


def _lacks_one(said: JobView, slots: Set[str], first: FirstPods) -> bool:
    """As lacks_pod; `slots`: the places of the pods that are there."""
    if {slot for slot, uid in first.items() if uid is not None} - slots:
        return True
    ran, let_go = said.running.since, said.suspended.since
    return not slots and (said.running.holds or (ran is not None and (let_go is None or ran > let_go)))


@dataclass(frozen=True)
class _Job:
    """A job, and what its pods' ends say together."""

    kind: JobKind
    name: str
    said: JobView
    deleting: bool
    created: datetime | None
    pods: Sequence[PodView]
    first: FirstPods
    missed: datetime | None

    @property
    def started(self) -> datetime | None:
        """When the last of its pods started. Until then those that run only wait for it, and that is not running."""
        times = [pod.started for pod in self.pods if pod.started]
        return max(times) if times and len(times) == max(self.said.pods, len(self.pods)) else None

    @property
    def done(self) -> bool:
        """Whether the pod that publishes has published its artifact."""
        return any(pod.leads and pod.exit_code == 0 and pod.exit_class is ExitClass.DONE for pod in self.pods)

    @property
    def failures(self) -> list[PodView]:
        """Pods that failed on their own account, the most telling first: a user's mistake, then the earliest."""
        found = [
            pod
            for pod in self.pods
            if pod.exit_code and pod.exit_class is not ExitClass.INTERRUPTED and not pod.disruption
        ]
        found = [pod for pod in found if not self._removed(pod, found)]
        return sorted(found, key=lambda pod: (pod.exit_class is not ExitClass.USER_ERROR, str(pod.ended)))

    @property
    def interruption(self) -> str:
        """What the cluster, or somebody, did to a pod; empty where nothing was done."""
        failures = self.failures
        for pod in self.pods:
            if pod.disruption:
                return pod.disruption
        for pod in self.pods:
            if self._removed(pod, failures):
                return f"pod {pod.name} was deleted"
        if self.replaced:
            return (
                "a pod disappeared and was created again; the attempt continues from its newest checkpoint in a new job"
            )
        # Pods that fail by themselves stay; only those that somebody removed are not there to tell.
        ran = self.said.running.since is not None
        if self.said.failed.holds and ran and not failures and not any(pod.alive or pod.exit_code for pod in self.pods):
            there = {pod.slot for pod in self.pods}
            gone = sorted(slot for slot, uid in self.first.items() if uid is not None and slot not in there)
            return f"pod{'s' * (len(gone) > 1)} {', '.join(gone)} disappeared" if gone else "a pod disappeared"
        return ""

    @property
    def replaced(self) -> bool:
        """Whether a pod was made anew, so that the attempt cannot go on, whatever its controller says."""
        return any(self.first.get(pod.slot) not in (None, pod.uid) for pod in self.pods)

    @property
    def decisive_pod(self) -> PodView | None:
        """The pod whose end tells most: one that failed by itself, else any that failed, else the leader."""
        ended = [pod for pod in self.pods if pod.exit_code is not None]
        failed = self.failures or sorted((pod for pod in ended if pod.exit_code), key=lambda pod: str(pod.ended))
        return next(iter(failed), None) or next((pod for pod in ended if pod.leads), None)

    @property
    def queued(self) -> bool:
        """Whether its queue has it wait."""
        return self.said.suspend or (self.said.suspended.holds and not self.pods)

    @property
    def waiting(self) -> Wait | None:
        """What keeps it from running; of several things the one that counts first."""
        if self.queued or self.deleting:
            return None
        found = [pod.waiting for pod in self.pods if pod.waiting]
        if self.created is not None and len(self.pods) < max(self.said.pods, 1):
            # A queue that has let it go on has had it wait until now.
            since = self.missed if self.lacks_one else max(filter(None, (self.created, self.said.suspended.since)))
            found += [wait(WaitReason.PODS_NOT_CREATED, self._unmade(), since, told_after=CATCH_UP)] if since else []
        # Of those that count as soon a pod that is not made comes first: without it the others do not begin.
        return min(found, key=_rank, default=None)

    @property
    def half_placed(self) -> datetime | None:
        """Since when the scheduler finds no place for a pod of it while another one keeps its own."""
        placed = [pod.placed for pod in self.pods if pod.alive and pod.placed]
        waits = [pod.waiting for pod in self.pods if pod.waiting and pod.waiting.counts_from]
        unplaced = [one.told_from for one in waits if one.reason is WaitReason.UNSCHEDULABLE]
        return max(min(placed), min(unplaced)) if placed and unplaced and not self.queued else None

    @property
    def lacks_one(self) -> bool:
        """Whether a pod that it had is not there."""
        return _lacks_one(self.said, {pod.slot for pod in self.pods}, self.first)

    def _unmade(self) -> str:
        reason = f"`kubectl describe {self.kind.name.lower()} {self.name}` has the reason"
        makes = self.kind.info.controller
        if self.lacks_one:
            gone = "one of its pods is gone and was not created again"
            return f"{gone}: {ADMISSION} refuses it, or {makes} does not run; {reason}"
        if self.pods:
            so_few = f"only {len(self.pods)} of its {self.said.pods} pods have been made"
            return f"{so_few}: {ADMISSION} may refuse the others; {reason}"
        none = "no pods have been made for it"
        return f"{none}: {ADMISSION} refuses them, or {makes} does not run; {reason}"

    def _removed(self, pod: PodView, failures: Sequence[PodView]) -> bool:
        """Whether the pod was deleted by somebody else than the job's controller, which cleans up after a failure."""
        if pod.deleted is None or self.deleting or self.said.suspend:
            return False
        latest = pod.deleted + SKEW
        return not any(other is not pod and other.ended and other.ended <= latest for other in failures)


def _rank(one: Wait) -> tuple[datetime, bool, datetime, str]:
    made = one.reason is not WaitReason.PODS_NOT_CREATED
    return one.counts_from or ENDLESS, made, one.told_from, one.message


def _state(job: _Job, now: datetime) -> tuple[JobState, str]:
    """The job's state, and what interrupted it where it failed for that."""
    going_on = JobState.RUNNING if job.started else JobState.PENDING
    if job.done:
        return JobState.SUCCEEDED, ""
    if job.said.succeeded.holds:
        behind = not any(pod.leads and pod.exit_code is not None for pod in job.pods)
        behind = behind and _fresh(job.said.succeeded.since, now)
        return (going_on if behind else JobState.SUCCEEDED), ""
    if job.said.suspend and not job.said.failed.holds:
        return JobState.PENDING, ""
    interruption, failures = job.interruption, job.failures
    ended_badly = [pod for pod in job.pods if pod.exit_code]
    lost = any(pod.lost for pod in job.pods)
    if not (job.said.failed.holds or job.replaced or ended_badly or lost):
        return going_on, ""
    told = ended_badly or (interruption and (job.first or job.pods))
    if job.said.failed.holds and not told and _fresh(job.said.failed.since, now):
        return going_on, ""  # its pods' end is not known yet
    if failures and failures[0].exit_class is not ExitClass.USER_ERROR and not interruption:
        first = min((pod.ended for pod in ended_badly if pod.ended), default=None)
        if any(pod.alive for pod in job.pods) and first is not None and now - first < SETTLING:
            return going_on, ""
    return JobState.FAILED, interruption


def _fresh(since: datetime | None, now: datetime) -> bool:
    return since is not None and now - since < CATCH_UP


def _message(job: _Job, state: JobState, interruption: str, decisive_pod: PodView | None, now: datetime) -> str:
    """One sentence on why the job waits or failed; empty where all is well, or a termination message tells."""
    if state is JobState.FAILED:
        if interruption:
            return interruption
        if decisive_pod is not None:
            return "" if decisive_pod.termination else decisive_pod.last_words
        return job.said.failed.message
    if state is JobState.SUCCEEDED:
        return ""
    if job.queued:
        return "suspended: waits to be admitted to its queue"
    return job.waiting.message if job.waiting and job.waiting.told_from <= now else ""


def _ended(job: _Job, decisive_pod: PodView | None) -> datetime | None:
    """When it ended."""
    verdict = job.said.succeeded.since or job.said.failed.since
    return (decisive_pod.ended if decisive_pod else None) or job.said.completed or verdict
