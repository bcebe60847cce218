"""The API server refuses, hangs up, falls silent or changes its mind: the run goes on, and the user is told.

No pods run here: no node takes them, and the tests end them as a kubelet would.
"""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml
from api import CRD, RUNS, Api, Body, Refused
from kubelets import NOWHERE, kubelet
from operators import FINAL, Namespace, manifest
from proxy import CUT, GONE, LOST, Answer, Asked, Fault, proxy
from tests.support.matchers import has_condition, has_step
from tests.support.waiting import until

from compression_operator.api.run import GROUP
from compression_operator.backends.kinds import PERMISSIONS
from compression_operator.kube.client import Permission


def test_a_whole_run_asks_for_what_its_role_lists_and_for_nothing_else(namespace: Namespace, api: Api) -> None:
    """So no rule is missing, for the operator runs with these alone, and none is superfluous."""
    edited = False

    def somebody_else_writes(asked: Asked) -> Fault:
        nonlocal edited
        if (asked.verb, asked.resource) == ("update", "compressionruns/status") and not edited:
            edited = True
            api.merge(namespace.run_path(), {"metadata": {"labels": {"edited": "meanwhile"}}})
        return None

    with proxy(api) as before, namespace.operator(server=before.url) as operator, kubelet(namespace, 1.0):
        before.fault = somebody_else_writes
        namespace.submit(jobTemplate=NOWHERE)
        assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
        namespace.edit(distill={"steps": 150, "globalBatchSize": 4})
        until(lambda: before.answered("delete", "pytorchjobs", 200), "superseded jobs to be deleted")
        assert namespace.wait_phase("Succeeded")
        operator.terminate()
        wrote = [
            a for a in before.asked if a.verb in ("create", "update", "patch", "delete") and a.resource != "leases"
        ]
        assert len(wrote) <= 8 * (8 + 4), Counter((a.verb, a.resource) for a in wrote)
        used = {(a.group, a.resource, a.verb) for a in before.asked if a.code < 400}
    listed = {(p.group, p.resource, verb) for p in PERMISSIONS for verb in p.verbs}
    # What only running pods, refused pods, repetition and other owners call for is asked for in other tests.
    events, jobs = ("events.k8s.io", "events"), ("kubeflow.org", "pytorchjobs")
    elsewhere = {("", "pods/log", "get"), (*events, "list"), (*events, "patch"), (*jobs, "get"), (*jobs, "patch")}
    # Nobody asks for it: the API server looks for it where a job blocks the deletion of its run.
    elsewhere |= {(GROUP, "compressionruns/finalizers", "update")}
    assert used - listed == set() and listed - used <= elsewhere
    assert edited and Counter(a.code for a in before.asked if a.resource == "compressionruns/status")[409] == 1
    assert not [line for line in operator.lines() if line["level"] == "error"], "a conflict is no error"


def test_a_run_through_a_storm_of_faults(namespace: Namespace, api: Api) -> None:
    """One in four requests fails in one of the ways that requests fail; each job is made once all the same.

    So do those for the lease. Now and then it is lost by that: the operator ends, and is started anew, as in its pod.
    """
    rng = random.Random(4)
    kinds: list[Fault] = [
        Answer(429, "TooManyRequests", {"Retry-After": "1"}),
        Answer(500, "InternalError"),
        Answer(503, "ServiceUnavailable"),
        Answer(504, "Timeout"),
        CUT,
        LOST,
    ]

    def fault(asked: Asked) -> Fault:
        return None if rng.random() > 0.25 else rng.choice(kinds)

    with proxy(api) as before, kubelet(namespace):
        before.fault = fault
        operators = [namespace.start(server=before.url)]

        def over() -> bool:
            if operators[-1].process.poll() is not None:
                assert "lost the lease" in operators[-1].output().splitlines()[-1]
                operators.append(namespace.start(server=before.url))
            return namespace.status().get("phase") in FINAL

        try:
            namespace.submit(jobTemplate=NOWHERE)
            until(over, "the run to end", seconds=900)
            status, made = namespace.status(), namespace.jobs()
        finally:
            for operator in operators:
                operator.kill()
    assert status["phase"] == "Succeeded"
    assert len(made) == 8 and all(step["attempt"] == 1 for step in status["steps"])
    assert len(before.answered("create", "pytorchjobs")) == 8, "201 Created was answered once for each"
    assert sum(a.code in (0, 429, 500, 503, 504) for a in before.asked) > 10


def test_a_denied_permission_is_told_and_heals_by_itself(namespace: Namespace) -> None:
    without = [
        Permission(p.group, p.resource, tuple(v for v in p.verbs if v != "create" or p.resource != "pytorchjobs"))
        for p in PERMISSIONS
    ]
    namespace.permit(without)
    with namespace.operator() as operator:
        namespace.submit(jobTemplate=NOWHERE)
        until(lambda: has_condition(namespace.status(), "Degraded", "True", reason="Forbidden"), "the condition")
        denied = 'cannot create resource "pytorchjobs" in API group "kubeflow.org"'
        assert has_condition(namespace.status(), "Ready", "False", says=denied)
        until(lambda: [e for e in namespace.events() if e["reason"] == "Forbidden"], "the Event")
        writes = len([e for e in namespace.events() if e["reason"] == "Forbidden"])
        namespace.permit(PERMISSIONS)
        with kubelet(namespace):
            status = namespace.wait_phase(*FINAL)
        assert status["phase"] == "Succeeded" and has_condition(status, "Degraded", "False")
        assert writes == 1 and operator.process.poll() is None


def test_a_quota_that_is_used_up_is_told_and_waited_for(namespace: Namespace, api: Api) -> None:
    path = f"/api/v1/namespaces/{namespace.name}/resourcequotas"
    hard = {"count/pytorchjobs.kubeflow.org": "0"}
    api.create(path, {"metadata": {"name": "none"}, "spec": {"hard": hard}})
    until(lambda: (api.get(f"{path}/none") or {}).get("status", {}).get("used"), "the quota to be in force")
    with namespace.operator():
        namespace.submit(jobTemplate=NOWHERE)
        until(lambda: has_condition(namespace.status(), "Ready", reason="QuotaExceeded"), "the condition")
        api.delete(f"{path}/none")
        until(lambda: namespace.jobs(), "the job")


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("pytorchjobs", "pytorchjobs.kubeflow.org: is the training operator installed?"),
        ("compressionruns", "compressionruns.modelcompression.io: install the CRD with `kubectl apply -f crds/`"),
    ],
)
def test_without_a_resource_it_says_what_to_install_and_waits_for_it(
    lacking: str, said: str, namespace: Namespace, api: Api
) -> None:
    with pytest.raises(Refused) as refused:
        api.call("GET", "/apis/modelcompression.io/v1/compressionruns")
    words = refused.value.status["message"]
    assert words == "404 page not found\n", "what a real API server says of a resource that it does not have"
    with proxy(api) as before:
        before.fault = lambda asked: Answer(404, text=words) if asked.resource == lacking else None
        operator = namespace.start("localhost/none:1", "--resync-seconds", "2", server=before.url)
        try:
            told = f"the API server does not know {said}"
            until(lambda: told in operator.ask("/readyz")[1], "/readyz to tell")
            assert operator.ask("/readyz")[0] == 503 and operator.process.poll() is None
            before.fault = lambda _: None
            operator.wait_ready()
            namespace.submit(jobTemplate=NOWHERE)
            with kubelet(namespace):
                assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
        finally:
            operator.kill()


def test_a_watch_that_falls_silent_is_noticed_and_the_run_goes_on(namespace: Namespace, api: Api) -> None:
    quick = ("--resync-seconds", "1", "--missed-seconds", "3")
    with proxy(api) as before, namespace.operator("localhost/none:1", *quick, server=before.url) as operator:
        assert operator.ask("/healthz")[0] == 200
        before.swallow = lambda asked: asked.resource in ("pytorchjobs", "pods")
        namespace.submit(jobTemplate=NOWHERE)
        with kubelet(namespace):
            until(lambda: operator.ask("/healthz")[0] == 503, "/healthz to fail")
            assert "watch of" in operator.ask("/healthz")[1]
            assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"


def test_a_watch_that_has_to_start_over_is_healthy(namespace: Namespace, api: Api) -> None:
    """A pod goes in the gap: what the watch tells from then on never mentions it."""
    quick = ("--resync-seconds", "0.5", "--missed-seconds", "1")

    def lists() -> int:
        return len(before.answered("list", "pods", 200))

    with proxy(api) as before, namespace.operator("localhost/none:1", *quick, server=before.url) as operator:
        namespace.submit(jobTemplate=NOWHERE)
        until(namespace.pods, "a pod")
        seen = lists()
        until(lambda: lists() > seen + 2, "the operator to know of it")
        before.fault = lambda asked: GONE if (asked.verb, asked.resource) == ("watch", "pods") else None
        api.delete(namespace.run_path())
        until(lambda: not namespace.pods(), "the pod to be gone")
        until(lambda: before.answered("watch", "pods", 410), "the watch to be told that it is too old")
        before.fault = lambda _: None
        seen, asked = lists(), []
        until(lambda: lists() > seen + 2, "the operator to know that it is gone")
        while lists() < seen + 12:
            asked.append(operator.ask("/healthz"))
    assert set(asked) == {(200, "ok\n")}


def test_an_idle_operator_is_healthy(namespace: Namespace) -> None:
    with namespace.operator("localhost/none:1", "--resync-seconds", "0.5", "--missed-seconds", "1") as operator:
        for _ in range(20):
            assert operator.ask("/healthz")[0] == 200


def test_a_namespace_that_is_deleted_is_no_error(namespace: Namespace, another: Namespace, api: Api) -> None:
    """It is not the operator's own: that one's account and lease go in no order, and with them all that it may do."""
    namespace.permit_everywhere()
    with namespace.operator("localhost/none:1", "--namespace", another.name) as operator:
        another.submit(jobTemplate=NOWHERE)
        until(another.jobs, "a job")
        api.delete(f"/api/v1/namespaces/{another.name}")

        def gone() -> bool:
            return api.get(f"/api/v1/namespaces/{another.name}") is None

        until(gone, "the namespace to be gone")
        namespace.submit(jobTemplate=NOWHERE)
        until(namespace.jobs, "a job of another namespace")
        assert not [line for line in operator.lines() if line["level"] == "error"]


@contextmanager
def laxer_schema(api: Api, path: str) -> Iterator[None]:
    """The CRD as it might have been once: any spec is taken."""
    crd, lax = (yaml.safe_load(CRD.read_text()) for _ in range(2))
    schema = lax["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema.pop("x-kubernetes-validations", None)
    where = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"

    def put(body: Body) -> bool:
        try:
            api.call("PUT", where, body | {"metadata": api.call("GET", where)["metadata"]})
        except Refused as refused:
            if refused.code != 409:  # the API server has noted something on it meanwhile
                raise
            return False
        return True

    def taken() -> bool:
        """Whether what the schema refuses is taken now."""
        strange = manifest("tried")
        strange["spec"]["distill"]["steps"] = "many"
        try:
            api.call("POST", path, strange, dryRun="All")
        except Refused as refused:
            if refused.code != 422:
                raise
            return False
        return True

    until(lambda: put(lax), "the laxer schema to be stored")
    try:
        until(taken, "the laxer schema to be served")
        yield
    finally:
        until(lambda: put(crd), "the schema to be stored again")
    until(lambda: not taken(), "the schema to be served again")


def test_a_run_of_another_schema_is_told_and_the_others_go_on(namespace: Namespace, api: Api) -> None:
    """Stored while the CRD was laxer: the API server gives it out, and this version cannot read it."""
    path = f"{RUNS}/namespaces/{namespace.name}/compressionruns"
    strange = manifest("strange", jobTemplate=NOWHERE)
    strange["spec"]["distill"]["steps"] = "many"
    with laxer_schema(api, path):
        api.create(path, strange)

    def refused_by_the_schema() -> list:
        return [e for e in namespace.events() if e["reason"] == "Unreadable" and e["regarding"]["name"] == "strange"]

    with namespace.operator() as operator, kubelet(namespace):
        namespace.submit("plain", jobTemplate=NOWHERE)
        assert namespace.wait_phase(*FINAL, name="plain")["phase"] == "Succeeded"
        # The API server takes no status for it (its own rules fail on it), but an Event.
        event = until(refused_by_the_schema, "the Event")[0]
        assert "spec.distill.steps" in event["note"]
        with laxer_schema(api, path):
            until(lambda: has_condition(namespace.status("strange"), "Ready", "False"), "the condition")
            told = {"reason": "Unreadable", "says": "spec.distill.steps"}
            assert has_condition(namespace.status("strange"), "Ready", **told)
        # Once it is put right it is a run like any other.
        namespace.edit("strange", distill={"steps": 100, "globalBatchSize": 4})
        status = namespace.wait_phase(*FINAL, name="strange")
        assert status["phase"] == "Succeeded" and has_condition(status, "Degraded", "False")
        assert operator.process.poll() is None


def test_a_job_of_another_owner_under_the_same_name_is_left_alone(namespace: Namespace, api: Api) -> None:
    with namespace.operator() as operator:
        namespace.submit("first", jobTemplate=NOWHERE)
        until(lambda: namespace.jobs(), "the job")
        (job,) = namespace.jobs()
        operator.terminate()
    # A run of the same name, made anew while its job is still there and somebody else's.
    orphan = f"/apis/kubeflow.org/v1/namespaces/{namespace.name}/pytorchjobs/{job['metadata']['name']}"
    api.delete(namespace.run_path("first"), propagationPolicy="Orphan")
    until(lambda: not api.call("GET", orphan)["metadata"].get("ownerReferences"), "the job to be an orphan")
    until(lambda: api.get(namespace.run_path("first")) is None, "the run to go, which comes after that")
    with namespace.operator():
        namespace.submit("first", jobTemplate=NOWHERE)
        waits = f"waits for job {job['metadata']['name']} to be removed"
        until(lambda: has_step(namespace.status("first"), "prepare", says=waits), "it to say so")
        assert [j["metadata"]["uid"] for j in namespace.jobs()] == [job["metadata"]["uid"]]
        api.delete(orphan)
        until(lambda: [j for j in namespace.jobs() if j["metadata"]["uid"] != job["metadata"]["uid"]], "our job")
