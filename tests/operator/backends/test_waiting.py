"""Pods that do not run: what they wait for, said at once, and a problem once it has lasted."""

import copy
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_world import World, manifest, student
from looks import at, finish, open_jobs, states, step, told
from recordings import UID, Body, Seen, replay
from recordings import states as recorded
from tests.support.matchers import has_condition, verdicts

from compression_operator.api.status import RunPhase
from compression_operator.backends.observe import observe_job
from compression_operator.backends.pods.podview import PATIENCE
from compression_operator.backends.pytorchjob.kind import PYTORCHJOB
from compression_operator.core.conditions import FINISHED
from compression_operator.core.jobs import JobState, ObservedJob, Wait, WaitReason

# -- what pods tell -------------------------------------------------------------------------------------------------


def seen(case: str) -> tuple[Body, Body]:
    """A recorded job and its only pod, as they were seen last."""
    last = Seen()
    for state in recorded(case):
        last.take(state)
    assert last.job is not None
    (pod,) = last.pods.values()
    return copy.deepcopy(last.job), copy.deepcopy(pod)


def observe(job: Body, *pods: Body, at: str) -> ObservedJob:
    return observe_job(PYTORCHJOB, job, pods, run_uid=UID, now=datetime.fromisoformat(at))


@pytest.mark.parametrize(
    ("case", "reason", "since"),
    [
        ("unschedulable", WaitReason.UNSCHEDULABLE, "2026-11-21T06:53:07Z"),
        ("no-image", WaitReason.IMAGE_PULL_FAILED, "2026-11-21T06:53:15Z"),
        ("no-secret", WaitReason.CONTAINER_CONFIG_ERROR, "2026-11-21T06:53:58Z"),
    ],
)
def test_recorded_pods_tell_why_they_do_not_run_and_since_when(case: str, reason: WaitReason, since: str) -> None:
    waits = {job.waiting for job in replay(recorded(case)) if job.waiting and job.message}
    assert {wait.reason for wait in waits} == {reason}
    began = datetime.fromisoformat(since)
    assert {(wait.told_from, wait.counts_from) for wait in waits} == {(began, began + PATIENCE)}
    assert {wait.message for wait in waits} == {job.message for job in replay(recorded(case)) if job.message}


@pytest.mark.parametrize("case", ["done", "crash", "evicted", "user-error", "worker-failed"])
def test_recorded_pods_that_ran_waited_for_nothing(case: str) -> None:
    waits = {job.waiting.reason for job in replay(recorded(case)) if job.waiting}
    assert waits <= {WaitReason.PODS_NOT_CREATED, WaitReason.CONTAINER_CREATING}, "each for a moment"
    assert not [job for job in replay(recorded(case)) if job.waiting and job.message]


def test_a_silent_node_is_waited_for_until_its_pod_is_given_up() -> None:
    found = list(replay(recorded("node-lost")))
    assert {job.waiting.reason for job in found if job.waiting and job.message} == {WaitReason.NODE_UNREACHABLE}
    assert found[-1].waiting is None, "it has ended"


def test_what_a_scheduling_gate_holds_back_is_wanted_to_wait() -> None:
    job, pod = seen("unschedulable")
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "it has gates"}
    pod["status"]["conditions"] = [gated]
    found = observe(job, pod, at="2026-11-21T09:00:00Z")
    assert found.message.endswith("cannot be scheduled: it has gates")
    assert found.waiting is not None and found.waiting.counts_from is None


def creating(state: str = "ContainerCreating") -> tuple[Body, Body]:
    """A job whose pod was bound to a node at 06:51:51, and not yet started, as the kubelet told it."""
    seen = Seen()
    for change in recorded("done"):
        seen.take(change)
        statuses = [pod["status"].get("containerStatuses") for pod in seen.pods.values()]
        if statuses and statuses[0]:
            break
    job, (pod,) = seen.job, seen.pods.values()
    assert (
        job is not None and pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating"
    )
    job, pod = copy.deepcopy(job), copy.deepcopy(pod)
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] = state
    return job, pod


def test_a_pod_that_is_being_created_for_long_is_told_of_and_counts_once_no_pull_takes_that_long() -> None:
    job, pod = creating()
    assert observe(job, pod, at="2026-11-21T06:52:50Z").message == ""
    found = observe(job, pod, at="2026-11-21T06:52:51Z")
    assert found.message == (
        "pod done-master-0 has not started since 2026-11-21 06:51:51 UTC: its image is still being pulled, or a volume "
        "of it cannot be mounted; `kubectl describe pod done-master-0` says"
    )
    assert found.waiting is not None and found.waiting.reason is WaitReason.CONTAINER_CREATING
    assert found.waiting.counts_from == datetime(2026, 11, 21, 7, 6, 51, tzinfo=UTC)
    assert observe(job, pod, at="2026-11-21T09:00:00Z").message == found.message, "each change would be written"


def test_a_pod_whose_volumes_are_mounted_waits_for_its_image() -> None:
    job, pod = creating()
    (ready,) = (c for c in pod["status"]["conditions"] if c["type"] == "PodReadyToStartContainers")
    ready |= {"status": "True", "lastTransitionTime": "2026-11-21T06:52:00Z"}
    assert observe(job, pod, at="2026-11-21T06:52:59Z").message == ""
    assert (
        "06:52:00 UTC: its image is still being pulled, it seems; "
        in observe(job, pod, at="2026-11-21T07:00:00Z").message
    )


def test_an_init_container_that_runs_is_another_matter_than_one_that_is_not_there() -> None:
    job, pod = creating("PodInitializing")
    (initialized,) = (c for c in pod["status"]["conditions"] if c["type"] == "Initialized")
    initialized["status"] = "False"
    init: Body = {"name": "fetch", "state": {"waiting": {"reason": "PodInitializing"}}}
    pod["status"]["initContainerStatuses"] = [init]
    assert "a volume of it cannot be mounted" in observe(job, pod, at="2026-11-21T06:52:51Z").message
    init["state"] = {"running": {"startedAt": "2026-11-21T06:51:53Z"}}
    assert observe(job, pod, at="2026-11-21T09:00:00Z").waiting is None
    initialized["status"] = "True"
    assert observe(job, pod, at="2026-11-21T09:00:00Z").waiting is not None, "a sidecar goes on while the rest waits"
    init["state"] = {"terminated": {"exitCode": 0, "finishedAt": "2026-11-21T08:59:00Z"}}
    assert observe(job, pod, at="2026-11-21T08:59:59Z").message == "", "until then it was at work"
    assert (
        "08:59:00 UTC: its image is still being pulled, it seems;"
        in observe(job, pod, at="2026-11-21T09:00:00Z").message
    )


@pytest.mark.parametrize("reason", ["ErrImagePull", "CreateContainerConfigError"])
def test_what_comes_after_the_init_containers_counts_from_their_end(reason: str) -> None:
    """A worker's may have waited for its master for 20 minutes; its own image is asked for only then."""
    job, pod = creating(reason)
    for name, end in (("fetch", "2026-11-21T06:55:00Z"), ("init-pytorch", "2026-11-21T07:11:51Z")):
        done: Body = {"name": name, "state": {"terminated": {"exitCode": 0, "finishedAt": end}}}
        pod["status"].setdefault("initContainerStatuses", []).append(done)
    found = observe(job, pod, at="2026-11-21T07:11:54Z").waiting
    assert found is not None
    assert found.reason in (WaitReason.IMAGE_PULL_FAILED, WaitReason.CONTAINER_CONFIG_ERROR)
    assert found.counts_from == datetime(2026, 11, 21, 7, 12, 51, tzinfo=UTC)


def test_pods_that_nobody_makes_count_from_when_the_queue_let_the_job_go() -> None:
    job, _ = seen("unschedulable")
    job["status"] = {}
    began = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
    found = observe(job, at="2026-11-21T09:00:00Z").waiting
    assert found is not None and (found.reason, found.counts_from) == (WaitReason.PODS_NOT_CREATED, began + PATIENCE)
    let_go = {"type": "Suspended", "status": "False", "lastTransitionTime": "2026-11-21T08:59:59Z"}
    job["status"] = {"conditions": [let_go]}
    found = observe(job, at="2026-11-21T09:00:00Z")
    assert found.message == "" and found.waiting is not None
    assert found.waiting.counts_from == datetime(2026, 11, 21, 9, 0, 59, tzinfo=UTC)
    job["spec"]["runPolicy"] = {"suspend": True}
    assert observe(job, at="2026-11-21T09:00:00Z").waiting is None


def test_pods_that_were_there_and_are_gone_are_not_said_to_be_refused() -> None:
    """Their node was deleted, say, or the pods' watch is ahead of the jobs': they end the attempt, whatever comes."""
    last = Seen()
    for state in recorded("force-deleted"):
        last.take(state)
        before = last.look()
        if last.job is not None and any(c["type"] == "Running" for c in last.job["status"].get("conditions", ())):
            break
    assert before is not None and before.state is JobState.RUNNING
    last.pods.clear()
    for first in (last.first, {}):  # as one that has only just started does not know them
        last.first = first
        gone = last.look(timedelta(hours=2), last.now + timedelta(hours=2))
        assert gone is not None and gone.message == ""
        # Where it is neither made anew nor told to have ended, something is in the way.
        stays = last.look(timedelta(hours=2), last.now + timedelta(hours=1))
        assert stays is not None and stays.waiting is not None
        assert stays.message.startswith("one of its pods is gone and was not created again: a quota, ")
        assert (stays.waiting.reason, stays.waiting.counts_from) == (
            WaitReason.PODS_NOT_CREATED,
            last.now + timedelta(hours=1) + PATIENCE,
        )
    assert last.job is not None
    suspended = {"lastTransitionTime": "2026-11-21T08:00:00Z"}
    running, *_ = (c for c in last.job["status"]["conditions"] if c["type"] == "Running")
    running |= {"status": "False", **suspended}
    last.job["status"]["conditions"].append({"type": "Suspended", "status": "False", **suspended})
    anew = last.look(timedelta(hours=2))
    assert anew is not None and anew.waiting is not None and anew.waiting.reason is WaitReason.PODS_NOT_CREATED
    last.first = {"force-deleted-master-0": None}
    assert last.look(timedelta(hours=2)) == anew, "its queue took them"


def test_of_several_pods_the_one_that_counts_first_is_told() -> None:
    job, pod = seen("unschedulable")
    job["spec"] = {"pytorchReplicaSpecs": {"Master": {"replicas": 1}, "Worker": {"replicas": 1}}}
    other = copy.deepcopy(pod)
    other["metadata"] |= {"name": "a-worker-0", "uid": "w"}
    other["status"]["conditions"][0] |= {"lastTransitionTime": "2026-11-21T06:53:06Z", "message": "it is full"}
    for pods in ([pod, other], [other, pod]):
        assert (
            observe(job, *pods, at="2026-11-21T06:54:00Z").message == "pod a-worker-0 cannot be scheduled: it is full"
        )


def test_workers_that_are_not_made_are_told_of_while_the_master_waits() -> None:
    """Their refusal was neither told nor asked for, until the master had a place."""
    job, master = seen("unschedulable")
    job["spec"] = {"pytorchReplicaSpecs": {"Master": {"replicas": 1}, "Worker": {"replicas": 2}}}
    for pod in (master, creating()[1]):
        pod["metadata"] |= {"name": "m", "ownerReferences": master["metadata"]["ownerReferences"]}
        found = observe(job, pod, at="2026-11-21T06:54:00Z")
        assert found.waiting is not None and found.waiting.reason is WaitReason.PODS_NOT_CREATED
        assert found.message.startswith("only 1 of its 3 pods have been made: a quota, a LimitRange")
    at_once = observe(job, master, at="2026-11-21T06:53:08Z")
    assert at_once.message == "", "they are still being made"


# -- what a run makes of it -----------------------------------------------------------------------------------------

WHY = "pod demo-prepare-master-0 cannot be scheduled: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def stuck(world: World, name: str, reason: WaitReason = WaitReason.UNSCHEDULABLE, why: str = WHY) -> Wait:
    """Let the job wait for something from now on."""
    wait = Wait(reason, why, told_from=world.now, counts_from=world.now + PATIENCE)
    world.update(name, waiting=wait, message=why)
    return wait


def test_what_lasts_degrades_the_run_and_is_told_once() -> None:
    world = World()
    world.look()
    (name,) = open_jobs(world)
    stuck(world, name)
    decision = world.look()
    assert has_condition(world, "Degraded", "False", reason="AsExpected") and decision.events == ()
    assert has_condition(world, "Progressing", says=WHY), "said at once"
    assert decision.look_again_seconds == PATIENCE.total_seconds(), "nobody else would wake the run up then"
    world.pass_time(PATIENCE.total_seconds())
    (event,) = world.look().events
    assert (event.type, event.reason, event.job) == ("Warning", "Unschedulable", name)
    assert event.message == f"prepare, attempt 1: {WHY}"
    assert has_condition(world, "Degraded", message=f"prepare: {WHY}")
    assert verdicts(world) == {
        "Suspended": ("False", "NotSuspended"),
        "Ready": ("False", "Unschedulable"),
        "Degraded": ("True", "Unschedulable"),
        "Progressing": ("True", "Unschedulable"),
        "Reconciling": ("True", "Unschedulable"),
        "Stalled": ("False", "Unschedulable"),
    }
    world.update(name, message="pod x cannot be scheduled: 0/2 nodes are available")  # the scheduler's other words
    world.pass_time(300)
    assert world.look().events == () and step(world, "prepare").message.endswith("0/2 nodes are available")


def test_what_resolves_itself_leaves_nothing_behind() -> None:
    world = World()
    world.look()
    (name,) = open_jobs(world)
    stuck(world, name)
    world.pass_time(3600)
    world.look()
    world.update(name, waiting=None, message="")
    world.start(name)
    world.look()
    assert step(world, "prepare").waiting_reason is None
    assert has_condition(world, "Degraded", "False", reason="AsExpected") and has_condition(
        world, "Ready", reason="Preparing"
    )


def test_another_reason_is_told_anew() -> None:
    world = World()
    world.look()
    (name,) = open_jobs(world)
    stuck(world, name)
    world.pass_time(3600)
    assert told(world.look()) == ["Unschedulable"]
    stuck(world, name, WaitReason.IMAGE_PULL_FAILED, "the image cannot be pulled")
    assert told(world.look()) == [] and has_condition(world, "Degraded", "False")
    world.pass_time(60)
    assert told(world.look()) == ["ImagePullFailed"] and has_condition(world, "Ready", reason="ImagePullFailed")


def test_while_another_student_goes_on_only_degraded_tells() -> None:
    world = at(World(manifest(students=[student("width", hiddenSize=128), student("depth", dropLayers=[3])])))
    for _ in range(2):
        finish(world)
    one, other = open_jobs(world)
    world.start(other)
    stuck(world, one)
    world.pass_time(60)
    world.look()
    assert world.status.phase is RunPhase.PRUNING and sorted(states(world).values()).count("Running") == 1
    assert has_condition(world, "Ready", reason="Pruning") and has_condition(
        world, "Degraded", "True", reason="Unschedulable"
    )


def test_a_job_that_goes_takes_its_reason_along() -> None:
    world = World()
    world.look()
    (name,) = open_jobs(world)
    stuck(world, name)
    world.pass_time(60)
    world.look()
    world.edit(suspend=True)
    world.look()
    assert step(world, "prepare").waiting_reason is None and has_condition(
        world, "Degraded", "False", reason="AsExpected"
    )


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(list(WaitReason)), st.integers(0, 200), st.booleans()), max_size=5))
def test_whatever_a_job_waits_for_a_second_look_tells_nothing_new(waits: list[tuple[WaitReason, int, bool]]) -> None:
    """World.look looks twice. And whenever a wait begins to count, somebody looks."""
    world = World()
    world.look()
    (name,) = open_jobs(world)
    for reason, passed, counts in waits:
        wait = Wait(reason, f"{reason}!", world.now, world.now + PATIENCE if counts else None)
        world.update(name, waiting=wait, message=wait.message)
        again = world.look().look_again_seconds
        if counts:
            assert again is not None and again <= PATIENCE.total_seconds()
        world.pass_time(passed)
        world.look()
        assert has_condition(world, "Degraded", str(counts and passed >= PATIENCE.total_seconds()))
    world.update(name, waiting=None, message="")
    world.drive()
    assert world.status.phase in FINISHED
    assert not any(step.waiting_reason for step in world.status.steps)
