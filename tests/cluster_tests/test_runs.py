"""Whole runs on real pods, with the stand-in in the place of the pipeline. One operator serves all of these tests."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from api import JOBS, Api, Body
from operators import FINAL, Namespace, Operator, step_of
from tests.support.matchers import has_condition, has_step, verdicts
from tests.support.waiting import until

SLOW = {"steps": 3000, "seconds": 0.1}
QUICK = {"steps": 5}
MAY_END = {"until": "/compression/attempt-{attempt}"}
GOES_ON = {"steps": 300, "seconds": 0.2, **MAY_END}
RESUMED = {"steps": 300, "seconds": 0.005, **MAY_END}
"""Nine minutes for something to happen to an attempt, also on a busy machine; from then on it is soon over."""


@pytest.fixture(scope="module")
def place(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    found = Namespace.create(api, "runs", tmp_path_factory.mktemp("runs"))
    try:
        yield found
    finally:
        found.remove()


@pytest.fixture(scope="module")
def operator(place: Namespace, pods: str) -> Iterator[Operator]:
    with place.operator(pods, "--progress-seconds", "2") as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def of_a_minute(place: Namespace, operator: Operator) -> None:
    """Runs whose story takes a minute and more; they are under way while the other tests have theirs."""
    phases = settings(prepare={"progressDeadlineSeconds": 60, "retryLimit": 0})
    submit(place, "silent", {"prepare": {"sleep": 600}}, **short(phases=phases))
    submit(place, "speaks", {"prepare": {"steps": 160, "seconds": 0.5}}, **short(phases=phases))


def submit(place: Namespace, name: str, behaviour: Body | None = None, *, folder: str = "", **spec: Any) -> None:
    """A run in a folder of its own."""
    claim = {"persistentVolumeClaim": {"claimName": "store", "subPath": folder or name}}
    place.submit(name, behaviour={"*": QUICK, **(behaviour or {})}, **{"storage": claim, **spec})


def resume_quickly(place: Namespace, name: str, step: str, attempt: int = 2) -> None:
    """Whatever starts from now on is quick, and this attempt may end: another pod of the one before it, which the
    training operator may make, must not be done before that is noticed.
    """
    (place.store / name / f"attempt-{attempt}").touch()
    place.behave({"*": QUICK, step: RESUMED}, place.store / name)


def short(**spec: Any) -> Body:
    """One student and no finetune: prepare, prune, distill, export."""
    return {"finetune": None, "students": [{"name": "width", "prune": {"hiddenSize": 64}}], **spec}


def settings(**phases: Body) -> Body:
    cpu = {"gpusPerNode": 0, "terminationGracePeriodSeconds": 10}
    return {phase: {**cpu, **phases.get(phase, {})} for phase in ("prepare", "finetune", "prune", "distill", "export")}


def done(status: Body) -> Body:
    assert status["phase"] == "Succeeded", json.dumps(status, indent=1)
    return status


def steps_taken(place: Namespace, job: str) -> list[int]:
    """The training steps that the log of a job tells of."""
    path = f"/api/v1/namespaces/{place.name}/pods/{job}-master-0/log"
    log = place.api.call("GET", path, container="pytorch", timestamps="true")["text"]
    events = [json.loads(line.partition(" ")[2]) for line in log.splitlines()]
    return [event["step"] for event in events if event["event"] == "progress"]


def test_a_run_from_first_to_last(place: Namespace, operator: Operator) -> None:
    """Succeeds; leaves only a status on the user's resource; is shared by a second run, edited, and deleted."""
    submit(place, "story")
    status = done(place.wait_phase(*FINAL, name="story"))
    assert len(status["steps"]) == 8
    assert Counter(place.starts("story")) == Counter((step["name"], 1) for step in status["steps"])
    assert has_condition(status, "Ready", "True")
    others = ("Progressing", "Degraded", "Suspended", "Reconciling", "Stalled")
    assert all(has_condition(status, kind, "False") for kind in others), verdicts(status)
    assert verdicts(status).keys() == {"Ready", *others}
    assert {student["name"]: student["parameters"] for student in status["students"]} == {
        "width": 600_000,
        "depth": 600_000,
    }
    only_its_status_is_ours(place.run("story")["metadata"])

    submit(place, "second", folder="story")
    second = done(place.wait_phase(*FINAL, name="second"))
    assert [step["name"] for step in second["steps"] if step.get("cached")] == [s["name"] for s in status["steps"]]

    before = {step["name"]: step for step in status["steps"]}
    old_jobs = {before[f"distill-{name}"]["jobName"] for name in ("width", "depth")}
    place.edit("story", distill={"steps": 150, "globalBatchSize": 4})
    status = done(until(lambda: _edited(place.run("story")), "the edited run to end"))
    again = {step["name"] for step in status["steps"] if step["jobName"] != before[step["name"]]["jobName"]}
    assert again == {"distill-width", "distill-depth", "export-width", "export-depth"}
    until(lambda: not old_jobs & {job["metadata"]["name"] for job in place.jobs()}, "superseded jobs to be removed")
    only_its_status_is_ours(place.run("story")["metadata"], generation=2)

    artifacts = sorted(path.name for path in (place.store / "story" / "artifacts").iterdir())
    place.api.delete(place.run_path("story"))
    place.api.delete(place.run_path("second"))

    def gone() -> bool:
        names = {pod["metadata"]["labels"].get("modelcompression.io/run") for pod in place.pods()}
        jobs = {job["metadata"]["labels"]["modelcompression.io/run"] for job in place.jobs()}
        return not {"story", "second"} & (names | jobs)

    until(gone, "the jobs and pods to go with their run")
    assert sorted(path.name for path in (place.store / "story" / "artifacts").iterdir()) == artifacts


def only_its_status_is_ours(meta: Body, generation: int = 1) -> None:
    assert "finalizers" not in meta and "annotations" not in meta and meta["generation"] == generation
    ours = [entry for entry in meta["managedFields"] if entry["manager"] == "compression-operator"]
    assert [(entry.get("subresource"), list(entry["fieldsV1"])) for entry in ours] == [("status", ["f:status"])]
    others = [entry for entry in meta["managedFields"] if entry not in ours]
    assert others and all("f:status" not in entry["fieldsV1"] for entry in others)


@pytest.mark.parametrize("how", ["deleted", "evicted", "killed"])
def test_a_pod_lost_in_mid_distillation_resumes_from_its_checkpoint_and_does_not_count(
    place: Namespace, operator: Operator, how: str
) -> None:
    name = f"lost-{how}"
    submit(
        place,
        name,
        {"distill-width": GOES_ON},
        **short(phases=settings(distill={"retryLimit": 0})),
    )
    step = place.wait_step("distill-width", "Running", name=name)
    reached = place.store / name / "work" / step["fingerprint"] / "step"
    until(lambda: reached.exists() and int(reached.read_text()) >= 5, "a checkpoint")
    checkpoint = int(reached.read_text())
    resume_quickly(place, name, "distill-width")
    pod = f"{step['jobName']}-master-0"
    path = f"/api/v1/namespaces/{place.name}/pods/{pod}"
    if how == "evicted":
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": place.name}}
        place.api.create(f"{path}/eviction", eviction)
    else:
        place.api.delete(path, **({"gracePeriodSeconds": 0} if how == "killed" else {}))
    status = done(place.wait_phase(*FINAL, name=name))
    step = step_of(status, "distill-width")
    assert (step["attempt"], step.get("failures", 0)) == (2, 0)
    failure = step["lastFailure"]
    assert failure["exitClass"] == "Interrupted"
    assert pod in failure["message"] or "disappeared" in failure["message"]
    # One that is killed keeps the checkpoint that it had; one that is asked to go writes another.
    taken = steps_taken(place, step["jobName"])
    assert taken == list(range(taken[0], 301)) and taken[0] > checkpoint, "the second attempt begins at a checkpoint"
    assert Counter(place.starts(name))["distill-width", 2] == 1


def test_a_users_mistake_is_not_retried_and_says_what_it_is(place: Namespace, operator: Operator) -> None:
    message = "the loss is not a number at step 3: lower distill.learningRate"
    fault = {"fail": {"class": "UserError", "message": message, "attempts": 9}}
    submit(place, "mistake", {"distill-width": fault})
    status = place.wait_phase(*FINAL, name="mistake")
    assert status["phase"] == "Failed"
    assert has_step(status, "distill-width", state="Failed", attempt=1, message=message)
    step = step_of(status, "distill-width")
    assert step["lastFailure"]["pod"] == f"{step['jobName']}-master-0" and step["lastFailure"]["node"]
    # The other student is made all the same.
    assert has_step(status, "export-depth", state="Succeeded")
    assert has_step(status, "export-width", state="Skipped")
    for kind in ("Ready", "Stalled"):
        assert has_condition(status, kind, reason="DistillFailed", says=message)


def test_a_passing_fault_is_retried_and_the_last_words_are_told(place: Namespace, operator: Operator) -> None:
    submit(place, "crash", {"prepare": {"fail": {"class": "Crash", "attempts": 1}}}, **short())
    until(lambda: step_of(place.status("crash"), "prepare").get("lastFailure"), "the failure")
    assert step_of(place.status("crash"), "prepare")["lastFailure"]["message"] == "exit code 1: Traceback: it broke"
    status = done(place.wait_phase(*FINAL, name="crash"))
    assert has_step(status, "prepare", attempt=2, failures=1)
    assert 'compression_step_retries_total{phase="prepare",reason="Transient"}' in operator.ask("/metrics")[1]


def test_a_job_that_runs_too_long_is_stopped(place: Namespace, operator: Operator) -> None:
    phases = settings(prepare={"activeDeadlineSeconds": 3, "retryLimit": 0})
    submit(place, "too-long", {"prepare": SLOW}, **short(phases=phases))
    status = place.wait_phase(*FINAL, name="too-long")
    assert status["phase"] == "Failed"
    assert has_step(status, "prepare", says="ran longer than activeDeadlineSeconds (3)")
    until(lambda: not place.pods(step_of(status, "prepare")["jobName"]), "the pod to be stopped")


def test_ended_jobs_go_and_the_run_stays_as_done_as_it_is(place: Namespace, operator: Operator) -> None:
    submit(place, "tidy", **short(ttlSecondsAfterFinished=5))
    first = done(place.wait_phase(*FINAL, name="tidy"))

    def jobs() -> list[str]:
        return [
            j["metadata"]["name"] for j in place.jobs() if j["metadata"]["labels"]["modelcompression.io/run"] == "tidy"
        ]

    until(lambda: not jobs(), "the jobs to go")
    until(lambda: not any(place.pods(step["jobName"]) for step in first["steps"]), "their pods to go with them")
    place.edit("tidy", distill={"steps": 150, "globalBatchSize": 4}, ttlSecondsAfterFinished=600, jobHistoryLimit=1)
    second = done(until(lambda: _edited(place.run("tidy")), "the edited run to end"))
    again = {"distill-width": 2, "export-width": 2}
    assert {step["name"]: step["attempt"] for step in second["steps"]} == {"prepare": 1, "prune-width": 1} | again
    assert Counter(step for step, _ in place.starts("tidy")) == {"prepare": 1, "prune-width": 1} | again
    assert sorted(jobs()) == sorted(step_of(second, name)["jobName"] for name in again)


def _edited(run: Body) -> Body | None:
    status: Body = run["status"]
    current = status["observedGeneration"] == run["metadata"]["generation"]
    return status if current and status["phase"] in FINAL else None


def test_suspend_and_resume(place: Namespace, operator: Operator) -> None:
    submit(place, "pause", {"distill-width": GOES_ON}, **short())
    step = place.wait_step("distill-width", "Running", name="pause")
    reached = place.store / "pause" / "work" / step["fingerprint"] / "step"
    until(lambda: reached.exists() and int(reached.read_text()) >= 5, "a checkpoint")
    place.edit("pause", suspend=True)
    place.wait_phase("Suspended", name="pause")
    until(lambda: not place.pods(step["jobName"]), "the pods to go")
    checkpoint = int(reached.read_text())
    assert 5 <= checkpoint < 300
    resume_quickly(place, "pause", "distill-width")
    assert has_condition(place.status("pause"), "Suspended", "True")
    place.edit("pause", suspend=False)
    status = done(place.wait_phase(*FINAL, name="pause"))
    step = step_of(status, "distill-width")
    assert has_step(status, "distill-width", failures=0)
    assert steps_taken(place, step["jobName"]) == list(range(checkpoint + 1, 301))


def test_a_job_deleted_by_hand_comes_again(place: Namespace, operator: Operator) -> None:
    submit(place, "by-hand", {"distill-width": GOES_ON}, **short())
    step = place.wait_step("distill-width", "Running", name="by-hand")
    resume_quickly(place, "by-hand", "distill-width")
    place.api.delete(f"{JOBS}/namespaces/{place.name}/pytorchjobs/{step['jobName']}", propagationPolicy="Background")
    status = done(place.wait_phase(*FINAL, name="by-hand"))
    assert has_step(status, "distill-width", failures=0)


def test_a_job_that_a_queue_suspends_waits_and_goes_on(place: Namespace, operator: Operator) -> None:
    phases = settings(prepare={"activeDeadlineSeconds": 120, "retryLimit": 0})
    submit(place, "queued", {"prepare": GOES_ON}, **short(phases=phases))
    step = place.wait_step("prepare", "Running", name="queued")
    path = f"{JOBS}/namespaces/{place.name}/pytorchjobs/{step['jobName']}"
    place.api.merge(path, {"spec": {"runPolicy": {"suspend": True}}})
    until(lambda: has_step(place.status("queued"), "prepare", says="queue"), "the message")
    until(lambda: not place.pods(step["jobName"]), "the pods to go")
    resume_quickly(place, "queued", "prepare", attempt=1)
    place.api.merge(path, {"spec": {"runPolicy": {"suspend": False}}})
    status = done(place.wait_phase(*FINAL, name="queued"))
    assert has_step(status, "prepare", attempt=1, failures=0)


def test_what_keeps_a_pod_waiting_is_told(place: Namespace, operator: Operator) -> None:
    submit(place, "gpus", **short(phases=settings(prepare={"gpusPerNode": 1})))
    template = {"image": "localhost/nowhere:1"}
    submit(place, "no-image", **short(jobTemplate=template))
    for name, said in (
        ("gpus", "Insufficient nvidia.com/gpu"),
        ("no-image", "image localhost/nowhere:1 cannot be pulled"),
    ):
        until(lambda: has_condition(place.status(name), "Ready", says=said), f"{said} on {name}")  # noqa: B023 - called at once
        place.api.delete(place.run_path(name))


def test_a_master_and_a_worker(place: Namespace, operator: Operator) -> None:
    two = settings(distill={"nodes": 2, "retryLimit": 0})
    submit(
        place,
        "pair",
        {"distill-width": {"steps": 20, "seconds": 0.1, "worker": {"class": "Done", "message": "", "after": 1}}},
        **short(phases=two),
    )
    status = done(place.wait_phase(*FINAL, name="pair"))
    job = next(j for j in place.jobs() if j["metadata"]["name"] == step_of(status, "distill-width")["jobName"])
    assert set(job["spec"]["pytorchReplicaSpecs"]) == {"Master", "Worker"}
    ends = {"class": "UserError", "message": "the worker's disk is full", "after": 1}
    submit(place, "broken-pair", {"distill-width": {**SLOW, "worker": ends}}, **short(phases=two))
    status = place.wait_phase(*FINAL, name="broken-pair")
    assert has_step(status, "distill-width", message="the worker's disk is full")


def test_a_silent_job_is_stopped_and_one_that_speaks_is_not(place: Namespace, operator: Operator) -> None:
    status = place.wait_phase(*FINAL, name="silent")
    assert status["phase"] == "Failed"
    silent = "gave no sign of life for progressDeadlineSeconds (60)"
    assert has_step(status, "prepare", attempt=1, failures=1, says=silent)
    until(lambda: not place.pods(step_of(status, "prepare")["jobName"]), "the pod to be stopped")
    status = done(place.wait_phase(*FINAL, name="speaks"))
    assert has_step(status, "prepare", attempt=1, failures=0)
    step = step_of(status, "prepare")
    began, ended = (datetime.fromisoformat(step[time]) for time in ("startTime", "completionTime"))
    assert (ended - began).total_seconds() > 60 and step["progress"]["step"] > 20


def test_the_log_says_what_each_line_is_about(place: Namespace, operator: Operator) -> None:
    """After the tests above: every line is JSON, lines about jobs name run, step and job."""
    lines = [line for line in operator.output().splitlines() if line]
    parsed = [json.loads(line) for line in lines]
    created = [line for line in parsed if line["message"].startswith("created attempt")]
    assert created and all({"run", "step", "job"} <= set(line) for line in created)
    assert all("run" in line for line in parsed if "reason" in line)
    assert not [line for line in parsed if line["level"] == "error"], "nothing went wrong in all of this"
