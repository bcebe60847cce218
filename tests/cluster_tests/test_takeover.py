"""Operators end, die, freeze and are replaced: runs go on as if nothing had happened, and no job is made twice."""

import random
import signal
import time
from collections import Counter

import pytest
from api import Api, timed
from kubelets import NOWHERE, end, kubelet
from operators import FINAL, Namespace, leader_and_follower
from proxy import HANGS, Asked, Fault, proxy
from tests.support.matchers import Match, has_condition
from tests.support.waiting import until

from compression_operator.kube.leader import Timing

LEASE = "/apis/coordination.k8s.io/v1"


def holder(namespace: Namespace) -> str:
    lease = namespace.api.get(f"{LEASE}/namespaces/{namespace.name}/leases/compression-operator") or {}
    return lease.get("spec", {}).get("holderIdentity", "")


def each_job_once(namespace: Namespace, *, unsaid: int = 0) -> None:
    """By the operator's own word, and by what there is. `unsaid`: jobs that one which was killed may have made without
    living to say so.
    """
    logs = "".join(path.read_text() for path in namespace.folder.glob("operator-*.log"))
    made = Counter(word for word in logs.split('"') if word.startswith("created attempt"))
    jobs = Counter(job["metadata"]["labels"]["modelcompression.io/step"] for job in namespace.jobs())
    assert set(jobs.values()) == {1} and len(jobs) == 8, jobs
    assert set(made.values()) == {1} and 8 - unsaid <= len(made) <= 8, made


def test_an_operator_that_is_told_to_stop_hands_over_at_once(namespace: Namespace) -> None:
    with leader_and_follower(namespace) as (first, second):
        assert holder(namespace) == "operator-0"
        namespace.submit(jobTemplate=NOWHERE)
        with kubelet(namespace, 2.0):
            until(lambda: namespace.jobs(), "the first job")
            assert "compression_queue_depth 0.0" in second.ask("/metrics")[1], "nothing waits for one that only watches"
            took = first.terminate()
            freed = holder(namespace) != "operator-0"
            waited = timed(lambda: holder(namespace) == "operator-1", "the other to lead", every=0.02)
            assert first.process.returncode == 0
            assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
    assert freed, "the lease need not expire first"
    # The pod's grace period is 30 s; a follower looks every 2 s.
    assert took < 15 and waited < Timing().duration, (took, waited)
    each_job_once(namespace)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_an_operator_stops_in_time_though_the_api_server_hangs(namespace: Namespace, api: Api, busy: bool) -> None:
    """Busy it has a pass under way that cannot end; idle, but the lease to give up."""
    with proxy(api) as before, namespace.operator(server=before.url) as operator:
        operator.wait_leads()
        if busy:
            namespace.submit(jobTemplate=NOWHERE)
            until(namespace.jobs, "a job")
            until(lambda: before.watched(namespace.name), "the edit to come to be seen")
        hanging: list[Asked] = []

        def all_but_the_lease(asked: Asked) -> Fault:
            if asked.resource == "leases":
                return None  # without it the operator would end by itself, which may be before the edit is seen
            hanging.append(asked)
            return HANGS

        def of_a_pass() -> list[Asked]:
            return [a for a in list(hanging) if a.verb not in ("list", "watch") and a.resource != "events"]

        if busy:
            before.fault = all_but_the_lease
            namespace.edit(suspend=True)
            until(of_a_pass, "a pass to hang")
        before.fault = lambda _: HANGS
        assert operator.terminate() < 25  # the pod's grace period is 30 s


def test_an_operator_that_is_killed_is_replaced_within_15_seconds(namespace: Namespace) -> None:
    with leader_and_follower(namespace) as (first, second):
        namespace.submit(jobTemplate=NOWHERE)
        with kubelet(namespace, 2.0):
            until(lambda: namespace.jobs(), "the first job")
            first.kill()
            waited = timed(lambda: holder(namespace) == "operator-1" and second.leads(), "the other to lead")
            assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
    assert waited <= 15, waited
    each_job_once(namespace, unsaid=1)


def test_an_operator_that_freezes_and_wakes_writes_nothing_more(namespace: Namespace) -> None:
    with leader_and_follower(namespace) as (first, second):
        namespace.submit(jobTemplate=NOWHERE)
        first.wait_line("created attempt 1 of prepare")  # there it is before, and one that freezes then never says so
        first.process.send_signal(signal.SIGSTOP)
        second.wait_leads()
        with kubelet(namespace, 1.0):
            until(lambda: len(namespace.jobs()) >= 3, "the other to go on")
            first.process.send_signal(signal.SIGCONT)
            assert first.wait_end() == 1, "it has lost the lease and ends"
            assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
        assert "lost the lease" in first.output()
    each_job_once(namespace)


def test_an_operator_killed_at_five_random_moments(namespace: Namespace, pods: str) -> None:
    """On real pods; each step's job is made once and started once."""
    rng = random.Random(5)
    namespace.submit(behaviour={"*": {"steps": 20, "seconds": 0.1}})
    for _ in range(5):
        operator = namespace.start(pods)
        try:
            operator.wait_line("this replica (operator-0) leads")
            time.sleep(rng.uniform(0.0, 4.0))
        finally:
            operator.kill()
    with namespace.operator(pods):
        status = namespace.wait_phase(*FINAL)
    assert status["phase"] == "Succeeded"
    assert Counter(namespace.starts()) == Counter((step["name"], 1) for step in status["steps"])
    assert {job["metadata"]["name"] for job in namespace.jobs()} == {step["jobName"] for step in status["steps"]}


def test_the_image_of_a_run_is_kept_through_an_upgrade_of_the_operator(namespace: Namespace, api: Api) -> None:
    def images() -> dict[str, str]:
        return {
            job["metadata"]["labels"]["modelcompression.io/run"]: job["spec"]["pytorchReplicaSpecs"]["Master"][
                "template"
            ]["spec"]["containers"][0]["image"]
            for job in namespace.jobs()
        }

    with namespace.operator("localhost/pipeline:1") as operator:
        namespace.submit("old", jobTemplate=NOWHERE)
        namespace.submit("own", jobTemplate={**NOWHERE, "image": "localhost/mine:1"})
        # A job is made before the status tells of its image.
        until(lambda: all("image" in namespace.status(name) for name in ("old", "own")), "both runs to start")
        operator.terminate()
    with namespace.operator("localhost/pipeline:2"), kubelet(namespace):
        namespace.submit("new", jobTemplate=NOWHERE)
        for name in ("old", "own", "new"):
            assert namespace.wait_phase(*FINAL, name=name)["phase"] == "Succeeded"
        assert images() == {"old": "localhost/pipeline:1", "own": "localhost/mine:1", "new": "localhost/pipeline:2"}
        for name, image in images().items():
            assert namespace.status(name)["image"] == image
        # What an edit plans anew the older image may not know.
        namespace.edit("old", export={"dtype": "float16"})
        until(lambda: namespace.run("old")["status"]["observedGeneration"] == 2, "the edit to be seen")
        namespace.wait_phase("Succeeded", name="old")
        assert namespace.status("old")["image"] == "localhost/pipeline:2"


def test_a_retry_is_asked_for_by_an_annotation(namespace: Namespace, api: Api) -> None:
    with namespace.operator():
        namespace.submit(jobTemplate=NOWHERE)
        (pod,) = until(namespace.pods, "the pod")
        end(api, pod, "UserError", "the token is wrong")
        assert namespace.wait_phase(*FINAL)["phase"] == "Failed"
        api.merge(namespace.run_path(), {"metadata": {"annotations": {"modelcompression.io/retry": "1"}}})
        with kubelet(namespace):
            status = namespace.wait_phase("Succeeded")
        assert status["handledRetry"] == "1"


def test_a_claim_of_one_node_is_warned_of_once(namespace: Namespace, api: Api) -> None:
    folder = namespace.folder / "one"
    folder.mkdir()
    namespace.claim("one", ["ReadWriteOnce"], folder)
    one = {"persistentVolumeClaim": {"claimName": "one"}}

    def progressing(name: str, says: str = "") -> Match:
        return has_condition(namespace.status(name), "Progressing", says=says)

    def warnings(name: str) -> list:
        return [e for e in namespace.events() if e["reason"] == "ClaimOfOneNode" and e["regarding"]["name"] == name]

    with namespace.operator() as operator:
        namespace.submit("spread", jobTemplate=NOWHERE, storage=one)
        namespace.submit("fine", jobTemplate=NOWHERE)
        namespace.submit("serial", jobTemplate=NOWHERE, storage=one, maxParallelJobs=1)
        until(lambda: progressing("spread", "claim one is ReadWriteOnce"), "the warning")
        assert progressing("spread", "maxParallelJobs is 2 and there are 2 students")
        until(lambda: warnings("spread"), "the Event")
        until(lambda: progressing("fine") and progressing("serial"), "the others")
        assert not progressing("fine", "ReadWriteOnce") and not progressing("serial", "ReadWriteOnce")
        operator.terminate()
    with namespace.operator() as operator:
        operator.wait_leads()
        namespace.edit("spread", export={"dtype": "float16"})
        until(lambda: namespace.run("spread")["status"]["observedGeneration"] == 2, "the edit to be seen")
        until(lambda: len(warnings("spread")) == 2, "a second Event, for it is another generation")
    assert [e.get("series") for e in warnings("spread")] == [None, None]
