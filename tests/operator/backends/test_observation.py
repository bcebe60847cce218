"""What jobs and pods tell: replayed from recordings of a real cluster, in any order, and cases that it cannot show."""

import copy
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import RECORDED, UID, Body, Seen, replay, states

from compression_operator.backends.observe import SETTLING, first_pods, left_over, observe_job, seen_job
from compression_operator.backends.pods.podview import CATCH_UP, UNANSWERED, seen_pod
from compression_operator.backends.pytorchjob.kind import PYTORCHJOB
from compression_operator.core.jobs import JobState, ObservedJob
from compression_pipeline.config import ExitClass

ENDS = {
    "crash": ExitClass.TRANSIENT,
    "deleted": ExitClass.INTERRUPTED,
    "done": ExitClass.DONE,
    "evicted": ExitClass.INTERRUPTED,
    "force-deleted": ExitClass.INTERRUPTED,
    "init-failed": ExitClass.INTERRUPTED,
    "no-image": None,
    "no-secret": None,
    "node-lost": ExitClass.INTERRUPTED,
    "out-of-memory": ExitClass.TRANSIENT,
    "preempted": ExitClass.INTERRUPTED,
    "resumed-early": ExitClass.INTERRUPTED,  # the training operator finds the old pod and calls the job failed
    "suspended": None,
    "unschedulable": None,
    "user-error": ExitClass.USER_ERROR,
    "worker-failed": ExitClass.TRANSIENT,
    "worker-goes-on": ExitClass.DONE,
}
"""How each recorded case ends; None: not at all."""


def test_every_recording_is_looked_at() -> None:
    assert set(ENDS) == {path.stem for path in RECORDED.glob("*.json")}


@pytest.mark.parametrize("case", ENDS)
def test_what_came_of_it(case: str) -> None:
    found = list(replay(states(case)))
    assert {job.ended_as for job in found} - {None} == ({ENDS[case]} - {None})
    assert found[-1].ended_as is ENDS[case] and not (ENDS[case] and found[-1].alive and case != "worker-goes-on")
    assert all(job.ours and job.step == "distill-width" and job.attempt == 1 for job in found)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(ENDS)), st.data())
def test_whichever_watch_is_ahead_no_job_is_taken_for_what_it_is_not(case: str, data: st.DataObject) -> None:
    """Jobs and pods come by watches of their own, each in order, neither in step with the other."""
    streams = {kind: [state for state in states(case) if state["kind"] == kind] for kind in ("job", "pod")}
    merged: list[Body] = []
    while any(streams.values()):
        kind = data.draw(st.sampled_from([kind for kind, left in streams.items() if left]))
        merged.append(streams[kind].pop(0))
    # Where the old pod is still seen although its queue has let the job go on, it looks as if somebody had deleted it.
    harmless = {ExitClass.INTERRUPTED} if case == "suspended" else set()
    assert {job.ended_as for job in replay(merged)} <= {None, ENDS[case]} | harmless


def last(case: str, name: str = "") -> ObservedJob:
    return list(replay(states(case)))[-1]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("crash", "exit code 1: Traceback: it broke"),
        (
            "out-of-memory",
            "the container used more memory than its limit and was killed (OOMKilled): raise its memory limit",
        ),
        ("init-failed", "pod init-failed-master-0: init container broken ended with code 3"),
        ("evicted", "pod evicted-master-0: EvictionByEvictionAPI: Eviction API: evicting"),
        ("deleted", "pod deleted-master-0 disappeared"),
        ("no-secret", 'pod no-secret-master-0: CreateContainerConfigError: secret "none" not found'),
    ],
)
def test_words_for_people(case: str, message: str) -> None:
    messages = [job.message for job in replay(states(case))]
    assert message in messages, messages


def test_words_of_the_scheduler_and_of_the_kubelet() -> None:
    assert "0/1 nodes are available: 1 Insufficient nvidia.com/gpu." in last("unschedulable").message
    # The kubelet goes to and fro between the error and its pause; the message stays.
    said = {job.message for job in replay(states("no-image"))} - {""}
    assert len(said) == 1 and "image localhost/none:1 cannot be pulled: failed to pull" in said.pop()


def test_a_pod_that_is_asked_to_go_is_known_for_interrupted_before_it_is_gone() -> None:
    first = next(job for job in replay(states("deleted")) if job.ended_as)
    assert first.alive and first.message == "pod deleted-master-0 was deleted"


def test_a_job_is_done_when_its_container_is_not_when_its_pod_is() -> None:
    found = list(replay(states("done")))
    done = next(index for index, job in enumerate(found) if job.state is JobState.SUCCEEDED)
    assert done < len(found) - 2, "two or three seconds before the training operator says so"
    termination = found[done].termination
    assert termination is not None and termination.result == {"key": "k"}
    assert not found[done].alive


def test_the_worker_that_failed_is_believed_not_the_master_that_was_stopped_for_it() -> None:
    job = last("worker-failed")
    assert (job.pod, job.exit_code, job.interrupted) == ("worker-failed-worker-0", 75, False)
    assert job.termination is not None and job.termination.message == "a link broke"


def test_others_get_a_moment_to_say_why() -> None:
    seen = Seen()
    for state in states("worker-failed"):
        seen.take(state)
        if state["kind"] == "pod" and state["object"]["status"].get("phase") == "Failed":
            break
    job, later = seen.look(), seen.look(SETTLING + timedelta(seconds=1))
    assert job is not None and later is not None
    assert (job.state, later.state) == (JobState.RUNNING, JobState.FAILED)


def test_while_a_queue_holds_a_job_it_does_not_run() -> None:
    found = list(replay(states("suspended")))
    held = [job for job in found if job.message.startswith("suspended")]
    assert held and all(job.state is JobState.PENDING for job in held)
    resumed = found[-1]
    assert resumed.state is JobState.RUNNING and resumed.started is not None
    # Time before the suspension does not count: the clock starts with the pods of now.
    assert resumed.started > max(
        job.started for job in found if job.started and job is not resumed and job.started != resumed.started
    )


def running() -> tuple[Body, Body]:
    """A job and its only pod while it runs."""
    seen = Seen()
    for state in states("done"):
        seen.take(state)
        if any(c["type"] == "Running" for c in (seen.job or {}).get("status", {}).get("conditions") or ()):
            break
    assert seen.job is not None
    (pod,) = seen.pods.values()
    return copy.deepcopy(seen.job), copy.deepcopy(pod)


NOW = datetime.fromisoformat("2026-11-21T06:51:54Z")


def failed(job: Body, at: str = "2026-11-21T06:51:54Z") -> Body:
    conditions = [c | {"status": "False"} if c["type"] == "Running" else c for c in job["status"]["conditions"]]
    conditions.append({"type": "Failed", "status": "True", "lastTransitionTime": at, "message": "it is failed"})
    return {**job, "status": {**job["status"], "conditions": conditions}}


def observe(job: Body, *pods: Body, later: float = 0) -> ObservedJob:
    return observe_job(PYTORCHJOB, job, pods, run_uid=UID, now=NOW + timedelta(seconds=later))


def disrupted(pod: Body, reason: str, message: str = "") -> Body:
    pod = copy.deepcopy(pod)
    target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
    pod["status"]["conditions"] = [*pod["status"]["conditions"], target]
    return pod


def test_the_kubelet_evicts() -> None:
    job, pod = running()
    pod = disrupted(pod, "TerminationByKubelet", "The node was low on resource: memory.")
    pod["status"] |= {"phase": "Failed", "reason": "Evicted"}
    pod["status"]["containerStatuses"][0]["state"] = {
        "terminated": {"exitCode": 137, "finishedAt": "2026-11-21T06:51:54Z"}
    }
    found = observe(failed(job), pod)
    assert found.ended_as is ExitClass.INTERRUPTED and "low on resource: memory" in found.message and not found.alive


@pytest.mark.parametrize(
    "reason", ["UnexpectedAdmissionError", "OutOfcpu", "NodeAffinity", "NodeShutdown", "Terminated"]
)
def test_the_kubelet_refuses_or_ends_a_pod(reason: str) -> None:
    job, pod = running()
    pod["status"] = {"phase": "Failed", "reason": reason, "message": "not here"}
    found = observe(failed(job), pod)
    assert found.ended_as is ExitClass.INTERRUPTED
    assert found.message == f"pod done-master-0: {reason}: not here"


def test_a_lost_node_is_waited_for_until_kubernetes_gives_it_up() -> None:
    """Its pod looks as if it ran for ever; only that it is no longer Ready, without a reason, tells."""
    found = list(replay(states("node-lost")))
    first = next(index for index, job in enumerate(found) if job.ended_as)
    silent = found[first - 1]
    assert silent.alive and silent.state is JobState.RUNNING, "while the silent node is tolerated"
    assert silent.message == "pod node-lost-master-0: its node does not answer"
    assert not found[first].live, "the training operator's word is not needed"
    assert found[-1].message == "pod node-lost-master-0: its node node-1 is lost"
    assert not found[-1].live, "the next attempt need not wait for it"
    pods = [state["object"] for state in states("node-lost") if state["kind"] == "pod"]
    assert not pods[-1]["status"]["containerStatuses"][0]["state"].keys() - {"running"}, "nobody says that it ended"


def test_a_taint_on_a_node_that_answers_is_not_a_lost_node() -> None:
    job, pod = running()
    pod = disrupted(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
    pod["metadata"] |= {"deletionTimestamp": "2026-11-21T06:57:00Z", "deletionGracePeriodSeconds": 300}
    assert observe(failed(job), pod).alive, "it writes its checkpoint"
    ready = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
    pod["status"]["conditions"] = [c for c in pod["status"]["conditions"] if c["type"] != "Ready"] + [ready]
    found = observe(failed(job), pod)
    assert found.ended_as is ExitClass.INTERRUPTED and found.alive, "the kubelet says why it is not ready"


def test_a_pod_that_never_ran_is_not_waited_for_for_ever() -> None:
    """It is not Ready from the first, so a lost node leaves no mark on it: it stays beyond its deadline."""
    job, pod = running()
    deadline = datetime(2026, 11, 21, 6, 57, tzinfo=UTC)
    pod["metadata"] |= {"deletionTimestamp": "2026-11-21T06:57:00Z", "deletionGracePeriodSeconds": 30}
    unready = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
    waiting = {"name": "pytorch", "ready": False, "state": {"waiting": {"reason": "ContainerCreating"}}}
    pod["status"] = {"phase": "Pending", "conditions": [unready], "containerStatuses": [waiting]}

    def live(after: timedelta) -> bool:
        return observe_job(PYTORCHJOB, job, [pod], run_uid=UID, now=deadline + after).live

    assert live(timedelta(0)) and live(UNANSWERED) and not live(UNANSWERED + timedelta(seconds=1))
    late = observe_job(PYTORCHJOB, job, [pod], run_uid=UID, now=deadline + UNANSWERED * 2)
    assert late.ended_as is ExitClass.INTERRUPTED
    pod["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": "2026-11-21T06:50:00Z"}}
    assert live(timedelta(days=1)), "what ran may run on, stuck on a volume that does not answer"


def test_the_node_lost_sight_of_the_container() -> None:
    job, pod = running()
    unknown = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": "could not be located"}
    pod["status"] |= {"phase": "Failed"}
    pod["status"]["containerStatuses"][0]["state"] = {"terminated": unknown}
    assert observe(failed(job), pod).ended_as is ExitClass.INTERRUPTED


def test_a_pod_that_vanished_and_was_made_anew_ends_the_attempt() -> None:
    job, pod = running()
    first = first_pods(PYTORCHJOB, job, [pod], {})
    pod["metadata"] |= {"uid": "another"}
    assert first_pods(PYTORCHJOB, job, [pod], first) == first
    found = observe_job(PYTORCHJOB, job, [pod], run_uid=UID, now=NOW, first=first)
    assert found.ended_as is ExitClass.INTERRUPTED and found.alive and "disappeared" in found.message


def test_pods_that_vanished_while_nobody_looked() -> None:
    job, _ = running()
    assert observe(failed(job)).ended_as is None, "its pods may not be known yet"
    found = observe(failed(job), later=60)
    assert (found.ended_as, found.message) == (ExitClass.INTERRUPTED, "a pod disappeared")


def test_a_job_that_never_had_pods_says_what_the_training_operator_said() -> None:
    job, _ = running()
    job["status"]["conditions"] = []
    found = observe(failed(job), later=60)
    assert (found.ended_as, found.message) == (ExitClass.TRANSIENT, "it is failed")


def test_a_job_without_pods_is_told_of_after_a_while() -> None:
    job, _ = running()
    job["status"] = {}
    assert observe(job).message == ""
    assert observe(job, later=60).message == (
        "no pods have been made for it: a quota, a LimitRange or another rule of admission refuses them, or the "
        "training operator does not run; `kubectl describe pytorchjob done` has the reason"
    )


def test_a_job_runs_once_all_of_its_pods_do() -> None:
    """Else the deadlines run while the master only waits for a worker that has no place yet."""
    job, master = running()
    job["spec"] = {"pytorchReplicaSpecs": {"Master": {"replicas": 1}, "Worker": {"replicas": 1}}}
    worker = copy.deepcopy(master)
    worker["metadata"] |= {"name": "done-worker-0", "uid": "w", "labels": {}}
    why = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
    started, worker["status"] = worker["status"], {"phase": "Pending", "conditions": [unscheduled]}
    found = observe(job, master, worker, later=7200)
    assert (found.state, found.started) == (JobState.PENDING, None)
    assert found.message == f"pod done-worker-0 cannot be scheduled: {why}"
    started["containerStatuses"][0]["state"]["running"]["startedAt"] = "2026-11-21T08:51:54Z"
    worker["status"] = started
    found = observe(job, master, worker, later=7200)
    assert (found.state, found.message) == (JobState.RUNNING, "")
    assert found.started == NOW + timedelta(hours=2), "only from then on does it run"


def test_a_worker_that_was_never_made_is_told_of() -> None:
    job, master = running()
    job["spec"] = {"pytorchReplicaSpecs": {"Master": {"replicas": 1}, "Worker": {"replicas": 3}}}
    assert seen_job(PYTORCHJOB, job)["spec"] == job["spec"]
    found = observe(job, master)
    assert (found.state, found.message) == (JobState.PENDING, ""), "it may be on its way"
    found = observe(job, master, later=60)
    assert found.state is JobState.PENDING and found.message == (
        "only 1 of its 4 pods have been made: a quota, a LimitRange or another rule of admission may refuse the "
        "others; `kubectl describe pytorchjob done` has the reason"
    )


def test_a_verdict_without_evidence_is_believed_after_a_while() -> None:
    job, pod = running()
    assert observe(failed(job), pod).ended_as is None
    assert observe(failed(job), pod, later=CATCH_UP.total_seconds() + 1).ended_as is ExitClass.TRANSIENT
    succeeded = failed(job)
    succeeded["status"]["conditions"][-1]["type"] = "Succeeded"
    for known in ((pod,), ()):  # where the watch of pods has only just been started anew, none is known
        assert observe(succeeded, *known).ended_as is None
        assert observe(succeeded, *known, later=CATCH_UP.total_seconds() + 1).ended_as is ExitClass.DONE


def test_a_users_mistake_stays_one_though_another_pod_was_lost() -> None:
    job, pod = running()
    worker = copy.deepcopy(pod)
    worker["metadata"] |= {"name": "done-worker-0", "uid": "w", "labels": {}}
    told = json.dumps({"class": "UserError", "message": "bad data"})
    ended = {"exitCode": 64, "message": told, "finishedAt": "2026-11-21T06:51:54Z"}
    worker["status"]["containerStatuses"][0]["state"] = {"terminated": ended}
    found = observe(job, disrupted(pod, "PreemptionByScheduler"), worker)
    assert found.ended_as is ExitClass.USER_ERROR and found.pod == "done-worker-0"


def test_a_passing_fault_beside_a_lost_pod_does_not_count() -> None:
    job, pod = running()
    worker = disrupted(pod, "DeletionByTaintManager")
    worker["metadata"] |= {"name": "done-worker-0", "uid": "w", "labels": {}}
    ended = {"exitCode": 75, "message": "connection reset by peer", "finishedAt": "2026-11-21T06:51:54Z"}
    pod["status"]["containerStatuses"][0]["state"] = {"terminated": ended}
    assert observe(failed(job), pod, worker).ended_as is ExitClass.INTERRUPTED


def test_pods_of_another_owner_do_not_count() -> None:
    job, pod = running()
    pod["metadata"]["ownerReferences"][0]["uid"] = "somebody"
    assert observe(job, pod).state is JobState.PENDING
    job["metadata"]["ownerReferences"][0]["uid"] = "somebody"
    assert not observe(job).ours and not observe(job).stripped


def test_a_job_without_its_labels_or_its_owner_is_not_anothers() -> None:
    ownerless, unlabelled = running()[0], running()[0]
    ownerless["metadata"]["ownerReferences"] = []
    del unlabelled["metadata"]["labels"]["modelcompression.io/fingerprint"]
    for job in (observe(ownerless), observe(unlabelled)):
        assert job.stripped and not job.ours
    unlabelled["metadata"]["ownerReferences"] = []
    assert not observe(unlabelled).stripped, "nothing shows any more that it was the run's"


def kept(state: Body) -> Body:
    return seen_job(PYTORCHJOB, state["object"]) if state["kind"] == "job" else seen_pod(state["object"])


def test_what_is_kept_is_all_that_is_read() -> None:
    for case in ENDS:
        for state in states(case):
            assert kept(state) == state["object"]


def test_what_is_left_of_a_job_that_is_gone_is_its_living_pods() -> None:
    seen, job = Seen(), None
    for state in states("deleted"):
        seen.take(state)
        if seen.job is not None and (job := seen.look()) and job.state is JobState.RUNNING:
            break
    assert seen.job is not None and job is not None
    pods = copy.deepcopy(list(seen.pods.values()))
    for pod in pods:
        pod["metadata"]["labels"] |= seen.job["metadata"]["labels"]
    left = left_over(PYTORCHJOB, pods, seen.now)
    assert left and (left.name, left.step, left.attempt) == (job.name, "distill-width", 1)
    assert left.live and left.deleting and left.ours and left.ended_as is None and left.fingerprint == job.fingerprint
    ended, orphans = copy.deepcopy(pods), copy.deepcopy(pods)
    for pod in ended:
        pod["status"]["phase"] = "Failed"
    for pod in orphans:
        del pod["metadata"]["ownerReferences"]
    for gone in (ended, orphans, []):
        assert left_over(PYTORCHJOB, gone, seen.now) is None
