"""One namespace or all of them; and how often a running step's progress is written."""

import time

from api import Api
from kubelets import NOWHERE, kubelet
from operators import FINAL, Namespace, Operator, step_of
from proxy import GONE, proxy
from tests.support.waiting import until

from compression_operator.backends.kinds import PERMISSIONS


def test_an_operator_of_one_namespace_leaves_the_others_alone(namespace: Namespace, another: Namespace) -> None:
    with namespace.operator(), kubelet(namespace):
        another.submit(jobTemplate=NOWHERE)
        namespace.submit(jobTemplate=NOWHERE)
        assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
    assert not another.jobs() and not another.status()


def test_a_tenant_that_is_deleted_concerns_no_other(namespace: Namespace, another: Namespace, api: Api) -> None:
    """With its RoleBinding: from then on the API server denies it to the operator, one that starts anew too. A watch
    that has to be opened again is refused with it, until the tenant is back.
    """
    rule = another.lend(namespace)
    both = ("--namespace", another.name, "--resync-seconds", "1", "--missed-seconds", "3")

    def denied(operator: Operator, value: float) -> bool:
        return f'compression_namespace_denied{{namespace="{another.name}"}} {value}' in operator.ask("/metrics")[1]

    def well(operator: Operator) -> bool:
        return operator.process.poll() is None and operator.ask("/readyz")[0] == operator.ask("/healthz")[0] == 200

    with proxy(api) as before, namespace.operator("localhost/none:1", *both, server=before.url) as first:
        another.submit("theirs", jobTemplate=NOWHERE)
        until(another.jobs, "a job of the tenant")
        until(lambda: before.watched(another.name), "the watches to be open")
        assert denied(first, 0.0)
        api.delete(rule)
        until(lambda: denied(first, 1.0), "the operator to tell of it")
        before.fault = lambda asked: GONE if (asked.verb, asked.namespace) == ("watch", another.name) else None
        another.submit("late", jobTemplate=NOWHERE)  # an event, upon which the watch has to be opened again
        until(lambda: before.answered("watch", "compressionruns", 410), "the watch to have to start over")
        before.fault = lambda _: None
        first.wait_line("will retry")
        namespace.submit("ours", jobTemplate=NOWHERE)
        until(namespace.jobs, "a job of the other")
        until(lambda: well(first), "it to be well, for nothing is owed by a watch of what is denied")
        assert "cannot see namespace" in first.output()
        first.terminate()
    with namespace.operator("localhost/none:1", *both, identity="operator-1") as second, kubelet(namespace):
        assert denied(second, 1.0)
        assert namespace.wait_phase(*FINAL, name="ours")["phase"] == "Succeeded"
        assert another.lend(namespace) == rule
        until(lambda: denied(second, 0.0), "the tenant to be seen again")
        with kubelet(another):
            assert another.wait_phase(*FINAL, name="late")["phase"] == "Succeeded"
        # Lists have told of it; the watches, which were refused, are tried again within half a minute.
        until(lambda: well(second), "it to be well")


def test_an_operator_that_is_denied_all_of_its_namespaces_says_so(namespace: Namespace, another: Namespace) -> None:
    rule = another.lend(namespace)
    with namespace.operator("localhost/none:1", "--namespace", another.name, "--resync-seconds", "1") as operator:
        another.submit(jobTemplate=NOWHERE)
        until(another.jobs, "the operator to be at work")
        namespace.api.delete(rule)
        namespace.permit([rule for rule in PERMISSIONS if rule.resource == "leases"])
        lost = "the operator may not list compressionruns in namespace"
        until(lambda: lost in operator.ask("/readyz")[1], "/readyz to tell")
        assert operator.ask("/readyz")[0] == 503
        assert operator.process.poll() is None
        again = namespace.start("localhost/none:1", "--namespace", another.name, identity="operator-1")
        try:
            until(lambda: lost in again.ask("/readyz")[1], "/readyz of one that starts to tell")
            assert again.process.poll() is None and again.ask("/healthz")[0] == 200
        finally:
            again.kill()


def test_an_operator_of_the_whole_cluster(namespace: Namespace, another: Namespace) -> None:
    namespace.permit_everywhere()
    with namespace.operator(everywhere=True), kubelet(namespace), kubelet(another):
        for place in (namespace, another):
            place.submit(jobTemplate=NOWHERE)
        for place in (namespace, another):
            assert place.wait_phase(*FINAL)["phase"] == "Succeeded"
            assert len(place.jobs()) == 8


def test_progress_is_written_at_a_bounded_rate(namespace: Namespace, api: Api, pods: str) -> None:
    """The step speaks ten times a second; its status is written once in --progress-seconds at most."""
    with proxy(api) as before, namespace.operator(pods, "--progress-seconds", "4", server=before.url):
        one = [{"name": "width", "prune": {"hiddenSize": 64}}]
        began = time.monotonic()
        goes_on = {"steps": 600, "seconds": 0.1, "until": "/compression/never"}
        namespace.submit(behaviour={"prepare": goes_on}, finetune=None, students=one)
        namespace.wait_step("prepare", "Running")

        def writes() -> int:
            return sum(a.verb == "update" and a.resource == "compressionruns/status" for a in list(before.asked))

        written = writes()
        until(lambda: step_of(namespace.status(), "prepare").get("progress", {}).get("step", 0) > 120, "progress")
        written = writes() - written
        progress = step_of(namespace.status(), "prepare")["progress"]
        logs, took = [a for a in list(before.asked) if a.resource == "pods/log"], time.monotonic() - began
        namespace.edit(suspend=True)
    # No look without its pause, however late the test's own are; no write without a look, but for that it runs, which
    # may have been counted late.
    assert 1 <= written <= len(logs) + 1 and len(logs) <= took / 4 + 1, (written, len(logs), took)
    assert progress["totalSteps"] == 600 and progress["loss"] < 4 and progress["tokensPerSecond"] == 1000
