"""What a PyTorchJob and its pods tell, as an ObservedJob. Pure functions from JSON to values.

The training operator's own verdict is not enough: it recreates a vanished pod inside the same job, calls a job failed
while a pod of it still writes a checkpoint, and learns two or three seconds late that a container has ended. So the
pods are looked at, one by one. The two come by watches of their own: where the job's word is ahead of the pods', the
pods' is waited for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from compression_operator.api.run import GROUP
from compression_operator.backends.pods.podview import EMPTY, Json, PodView, mapping, mappings, view, wait, when
from compression_operator.core.jobs import JobState, ObservedJob, Wait, WaitReason
from compression_pipeline.config import ExitClass

JOB_NAME = "training.kubeflow.org/job-name"
"""Label that the training operator puts on pods."""

REPLICAS = "pytorchReplicaSpecs"

META = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "labels",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "uid",
)

ENDLESS = datetime.max.replace(tzinfo=UTC)

ADMISSION = "a quota, a LimitRange or another rule of admission"
"""What keeps pods from being made; the training operator tells it in an Event of the job."""

CATCH_UP = timedelta(seconds=30)
"""Time for which a job's word is taken to be ahead of what is known of its pods."""

SKEW = timedelta(seconds=60)
"""What the clocks of the API server, the training operator and a node are off by at most. They need not agree: the
times of two of them are only compared with this margin.
"""

SETTLING = timedelta(seconds=5)
"""Time for the other pods to say how they ended, once one has failed: the one that failed first knows why."""


FirstPods = Mapping[str, str | None]
"""UIDs of the pods that a job began with, by name. Empty: of one that nobody saw; None: of one that its queue took."""

NONE_YET: FirstPods = MappingProxyType({})


def seen_job(body: Json) -> Json:
    """The part of a PyTorchJob that is read here; the rest isn't worth its memory."""
    suspend = mapping(body, "spec", "runPolicy").get("suspend")
    spec: dict[str, Any] = {"runPolicy": {"suspend": suspend}} if suspend else {}
    replicas = mapping(body, "spec", REPLICAS)
    if replicas:
        spec[REPLICAS] = {kind: {"replicas": mapping(replicas, kind).get("replicas", 1)} for kind in replicas}
    return {"metadata": _meta(body), "spec": spec, "status": dict(mapping(body, "status"))}


def seen_pod(body: Json) -> Json:
    """The part of a pod that is read here."""
    node = mapping(body, "spec").get("nodeName")
    return {
        "metadata": _meta(body),
        "spec": {"nodeName": node} if node else {},
        "status": dict(mapping(body, "status")),
    }


def _meta(body: Json) -> Json:
    meta = mapping(body, "metadata")
    return {name: meta[name] for name in META if name in meta}


def first_pods(body: Json, pods: Sequence[Json], known: FirstPods) -> FirstPods:
    """The pods that the job began with, given those that are known from earlier looks.

    Where none are known, for this operator has only just started, a pod that was made long after the job began to run
    is another's successor, whose UID nobody knows any more. A queue that suspends a job takes its pods: it begins anew.
    """
    uid = mapping(body, "metadata").get("uid")
    running = _conditions(body).get("Running", EMPTY)
    ran = when(running.get("lastTransitionTime")) if running.get("status") == "True" and not known else None
    found: dict[str, str | None] = {}
    for meta in (mapping(pod, "metadata") for pod in pods if _owner(pod) == uid):
        created = when(meta.get("creationTimestamp"))
        if "deletionTimestamp" not in meta:
            found[str(meta.get("name"))] = "" if ran and created and created > ran + SKEW else str(meta.get("uid"))
    if mapping(body, "spec", "runPolicy").get("suspend"):
        return dict.fromkeys({**known, **found})
    return {**found, **{name: first for name, first in known.items() if first is not None or name not in found}}


def lacks_pod(body: Json, pods: Sequence[Json], first: FirstPods, now: datetime) -> bool:
    """Whether a pod that the job had is not there (see observe_job)."""
    return _job(body, pods, now, first, None).lacks_one


def observe_job(
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
    job = _job(body, pods, now, first, missed)
    own = job.pods
    state, interruption = _state(job, now)
    witness = job.witness
    shown = witness or next((pod for pod in own if pod.master), None)
    failed = state is JobState.FAILED
    over = failed or state is JobState.SUCCEEDED
    attempt = str(labels.get(f"{GROUP}/attempt", ""))
    return ObservedJob(
        name=str(meta.get("name")),
        step=str(labels.get(f"{GROUP}/step", "")),
        fingerprint=str(labels.get(f"{GROUP}/fingerprint", "")),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        state=state,
        alive=any(pod.alive for pod in own),
        ours=_owner(body) == run_uid and f"{GROUP}/fingerprint" in labels and attempt.isdecimal(),
        deleting=job.deleting,
        created=job.created,
        started=job.started,
        ended=(_ended(job, mapping(body, "status"), witness) if over else None),
        termination=witness.termination if witness and over else None,
        exit_code=witness.exit_code if witness and over else None,
        interrupted=failed and bool(interruption),
        message=_message(job, state, interruption, witness, now),
        waiting=None if over else job.waiting,
        half_placed=None if over else job.half_placed,
        pod=shown.name if shown else None,
        node=shown.node if shown else None,
    )


def left_over(pods: Sequence[Json], now: datetime) -> ObservedJob | None:
    """A job that is gone while pods of it still write a checkpoint: it is being deleted, and not by us, who keep a job
    in sight until its pods have ended. None where no pod lives that a job owns.
    """
    living = [pod for pod in pods if _owner(pod) is not None and view(pod, now).alive]
    if not living:
        return None
    labels = mapping(living[0], "metadata", "labels")
    attempt = str(labels.get(f"{GROUP}/attempt", ""))
    return ObservedJob(
        name=str(labels.get(JOB_NAME)),
        step=str(labels.get(f"{GROUP}/step", "")),
        fingerprint=str(labels.get(f"{GROUP}/fingerprint", "")),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        state=JobState.PENDING,
        alive=True,
        deleting=True,
        message="the job was deleted by somebody; waits for its pods to end",
    )


def _job(body: Json, pods: Sequence[Json], now: datetime, first: FirstPods, missed: datetime | None) -> "_Job":
    meta = mapping(body, "metadata")
    return _Job(
        name=str(meta.get("name")),
        conditions=_conditions(body),
        suspended=bool(mapping(body, "spec", "runPolicy").get("suspend")),
        deleting="deletionTimestamp" in meta,
        created=when(meta.get("creationTimestamp")),
        pods=[view(pod, now) for pod in pods if _owner(pod) == meta.get("uid")],
        nodes=sum(int(one.get("replicas", 1)) for one in mapping(body, "spec", REPLICAS).values()),
        first=first,
        missed=missed,
    )


@dataclass(frozen=True)
class _Job:
    """A job, and what its pods' ends say together."""

    name: str
    conditions: Mapping[str, Json]
    suspended: bool
    deleting: bool
    created: datetime | None
    pods: Sequence[PodView]
    nodes: int  # pods that it is to have
    first: FirstPods
    missed: datetime | None

    def holds(self, kind: str) -> bool:
        return self.conditions.get(kind, EMPTY).get("status") == "True"

    def since(self, kind: str) -> datetime | None:
        return when(self.conditions.get(kind, EMPTY).get("lastTransitionTime"))

    @property
    def started(self) -> datetime | None:
        """When the last of its pods started. Until then those that run only wait for it, and that is not running."""
        times = [pod.started for pod in self.pods if pod.started]
        return max(times) if times and len(times) == max(self.nodes, len(self.pods)) else None

    @property
    def done(self) -> bool:
        """Whether the master has published its artifact."""
        return any(pod.master and pod.exit_code == 0 and pod.exit_class is ExitClass.DONE for pod in self.pods)

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
            return "a pod vanished and was made anew; the attempt goes on from its newest checkpoint in a new job"
        # Pods that fail by themselves stay; only those that somebody removed are not there to tell.
        ran = self.since("Running") is not None
        if self.holds("Failed") and ran and not failures and not any(pod.alive or pod.exit_code for pod in self.pods):
            return "a pod vanished"
        return ""

    @property
    def replaced(self) -> bool:
        """Whether a pod was made anew, so that the attempt cannot go on, whatever the training operator says."""
        return any(self.first.get(pod.name) not in (None, pod.uid) for pod in self.pods)

    @property
    def witness(self) -> PodView | None:
        """The pod whose end tells most: one that failed on its own account, else any that failed, else the master."""
        ended = [pod for pod in self.pods if pod.exit_code is not None]
        failed = self.failures or sorted((pod for pod in ended if pod.exit_code), key=lambda pod: str(pod.ended))
        return next(iter(failed), None) or next((pod for pod in ended if pod.master), None)

    @property
    def queued(self) -> bool:
        """Whether its queue has it wait."""
        return self.suspended or (self.holds("Suspended") and not self.pods)

    @property
    def waiting(self) -> Wait | None:
        """What keeps it from running; of several things the one that counts first."""
        if self.queued or self.deleting:
            return None
        found = [pod.waiting for pod in self.pods if pod.waiting]
        if not found and self.created is not None and len(self.pods) < max(self.nodes, 1):
            # A queue that has let it go on has had it wait until now.
            since = self.missed if self.lacks_one else max(filter(None, (self.created, self.since("Suspended"))))
            return wait(WaitReason.PODS_NOT_CREATED, self._unmade(), since, told_after=CATCH_UP) if since else None
        return min(found, key=lambda one: (one.counts_from or ENDLESS, one.told_from, one.message), default=None)

    @property
    def half_placed(self) -> datetime | None:
        """Since when the scheduler finds no place for a pod of it while another one keeps its own."""
        placed = [pod.placed for pod in self.pods if pod.alive and pod.placed]
        waits = [pod.waiting for pod in self.pods if pod.waiting and pod.waiting.counts_from]
        unplaced = [one.told_from for one in waits if one.reason is WaitReason.UNSCHEDULABLE]
        return max(min(placed), min(unplaced)) if placed and unplaced and not self.queued else None

    @property
    def lacks_one(self) -> bool:
        """Whether a pod that it had is not there: it is told to have ended in a moment, is made anew, or cannot be."""
        had = {name for name, first in self.first.items() if first is not None}
        if had - {pod.name for pod in self.pods}:
            return True
        ran, let_go = self.since("Running"), self.since("Suspended")
        return not self.pods and (self.holds("Running") or (ran is not None and (let_go is None or ran > let_go)))

    def _unmade(self) -> str:
        reason = f"`kubectl describe pytorchjob {self.name}` has the reason"
        if self.lacks_one:
            gone = "a pod that it had is gone and has not been made anew"
            return f"{gone}: {ADMISSION} refuses it, or the training operator does not run; {reason}"
        if self.pods:
            so_few = f"only {len(self.pods)} of its {self.nodes} pods have been made"
            return f"{so_few}: {ADMISSION} refuses the others perhaps; {reason}"
        none = "no pods have been made for it"
        return f"{none}: {ADMISSION} refuses them, or the training operator does not run; {reason}"

    def _removed(self, pod: PodView, failures: Sequence[PodView]) -> bool:
        """Whether the pod was deleted by somebody else than the training operator, which cleans up after a failure."""
        if pod.deleted is None or self.deleting or self.suspended:
            return False
        latest = pod.deleted + SKEW
        return not any(other is not pod and other.ended and other.ended <= latest for other in failures)


def _state(job: _Job, now: datetime) -> tuple[JobState, str]:
    """The job's state, and what interrupted it where it failed for that."""
    going_on = JobState.RUNNING if job.started else JobState.PENDING
    if job.done:
        return JobState.SUCCEEDED, ""
    if job.holds("Succeeded"):
        behind = not any(pod.master and pod.exit_code is not None for pod in job.pods)
        behind = behind and _fresh(job.since("Succeeded"), now)
        return (going_on if behind else JobState.SUCCEEDED), ""
    if job.suspended and not job.holds("Failed"):
        return JobState.PENDING, ""
    interruption, failures = job.interruption, job.failures
    ended_badly = [pod for pod in job.pods if pod.exit_code]
    lost = any(pod.lost for pod in job.pods)
    if not (job.holds("Failed") or job.replaced or ended_badly or lost):
        return going_on, ""
    told = ended_badly or (interruption and (job.first or job.pods))
    if job.holds("Failed") and not told and _fresh(job.since("Failed"), now):
        return going_on, ""  # its pods' end is not known yet
    if failures and failures[0].exit_class is not ExitClass.USER_ERROR and not interruption:
        first = min((pod.ended for pod in ended_badly if pod.ended), default=None)
        if any(pod.alive for pod in job.pods) and first is not None and now - first < SETTLING:
            return going_on, ""
    return JobState.FAILED, interruption


def _fresh(since: datetime | None, now: datetime) -> bool:
    return since is not None and now - since < CATCH_UP


def _message(job: _Job, state: JobState, interruption: str, witness: PodView | None, now: datetime) -> str:
    """One sentence on why the job waits or failed; empty where all is well, or a termination message tells."""
    if state is JobState.FAILED:
        if interruption:
            return interruption
        if witness is not None:
            return "" if witness.termination else witness.last_words
        return str(job.conditions.get("Failed", EMPTY).get("message", ""))
    if state is JobState.SUCCEEDED:
        return ""
    if job.queued:
        return "suspended: waits to be admitted to its queue"
    return job.waiting.message if job.waiting and job.waiting.told_from <= now else ""


def _ended(job: _Job, status: Json, witness: PodView | None) -> datetime | None:
    """When it ended. A permanent failure may leave completionTime empty (training operator 1.9)."""
    verdict = job.since("Succeeded") or job.since("Failed")
    return (witness.ended if witness else None) or when(status.get("completionTime")) or verdict


def _conditions(body: Json) -> dict[str, Json]:
    return {str(condition["type"]): condition for condition in mappings(mapping(body, "status"), "conditions")}


def _owner(body: Json) -> str | None:
    """UID of the controlling owner."""
    references = mappings(mapping(body, "metadata"), "ownerReferences")
    return next((str(ref.get("uid")) for ref in references if ref.get("controller")), None)
