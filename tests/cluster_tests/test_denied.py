"""An operator that may not see what it is to look after: it says so, and goes on once it may."""

import pytest
from api import Api
from kubelets import NOWHERE, kubelet
from operators import FINAL, RBAC, Namespace, Operator
from proxy import GONE, proxy
from rights import wait_permitted
from tests.support.waiting import until

from compression_operator.backends.kinds import PERMISSIONS
from compression_operator.kube.client import Permission


def without(verb: str, resource: str) -> list[Permission]:
    """Everything that the operator may do, but for this."""
    return [
        Permission(p.group, p.resource, tuple(v for v in p.verbs if (p.resource, v) != (resource, verb)))
        for p in PERMISSIONS
    ]


def unready(operator: Operator, words: str) -> bool:
    code, said = operator.ask("/readyz")
    assert operator.process.poll() is None, operator.output()
    return code == 503 and words in said


@pytest.mark.parametrize(
    ("verb", "resource"), [("list", "pytorchjobs"), ("watch", "pods"), ("list", "compressionruns")]
)
def test_one_that_starts_without_a_right_waits_for_it(namespace: Namespace, verb: str, resource: str) -> None:
    namespace.permit(without(verb, resource))
    operator = namespace.start("localhost/none:1", "--resync-seconds", "1")
    words = f"the operator may not {verb} {resource} in namespace {namespace.name}: add this to the Role or ClusterRole"
    denied = f'compression_namespace_denied{{namespace="{namespace.name}"}}'
    try:
        until(lambda: unready(operator, words), "/readyz to tell")
        assert operator.ask("/healthz")[0] == 200 and f"{denied} 1.0" in operator.ask("/metrics")[1]
        namespace.submit(jobTemplate=NOWHERE)
        assert [words in line["message"] for line in operator.lines()].count(True) == 1, "told once"
        namespace.permit(PERMISSIONS)
        operator.wait_ready()
        assert f"{denied} 0.0" in operator.ask("/metrics")[1]
        with kubelet(namespace):
            assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
    finally:
        operator.kill()


def test_one_of_the_whole_cluster_that_starts_without_its_role_waits_for_it(namespace: Namespace) -> None:
    namespace.permit([rule for rule in PERMISSIONS if rule.resource == "leases"])
    operator = namespace.start("localhost/none:1", "--resync-seconds", "1", everywhere=True)
    try:
        words = "the operator may not list compressionruns in the whole cluster: add this to the Role or ClusterRole"
        until(lambda: unready(operator, words), "/readyz to tell")
        assert 'compression_namespace_denied{namespace=""} 1.0' in operator.ask("/metrics")[1]
        namespace.submit(jobTemplate=NOWHERE)
        namespace.permit_everywhere()
        operator.wait_ready()
        with kubelet(namespace):
            assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
    finally:
        operator.kill()


def test_runs_that_went_with_the_right_to_see_them_are_forgotten(
    namespace: Namespace, another: Namespace, api: Api
) -> None:
    """As in a namespace that is deleted, where the RoleBinding may go first, and the watch be closed right then."""
    rule = another.lend(namespace)
    both = ("--namespace", another.name, "--resync-seconds", "1")

    def runs(operator: Operator) -> float:
        lines = operator.ask("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("compression_runs{"))

    with proxy(api) as before, namespace.operator("localhost/none:1", *both, server=before.url) as operator:
        another.submit("gone", jobTemplate=NOWHERE)
        another.submit("stays", jobTemplate=NOWHERE)
        until(lambda: runs(operator) == 2 and len(another.jobs()) == 2, "their jobs")
        until(lambda: before.watched(another.name), "the watches to be open")
        api.delete(rule)
        wait_permitted(api, namespace.user, another.name, ())  # until then a watch could be opened again
        before.fault = lambda asked: GONE if (asked.verb, asked.namespace) == ("watch", another.name) else None
        another.edit("gone", suspend=True)  # an event, upon which the watch has to be opened again
        until(lambda: before.answered("watch", "compressionruns", 410), "the watch to have to start over")
        before.fault = lambda _: None
        operator.wait_line("will retry")
        api.delete(another.run_path("gone"))
        until(lambda: runs(operator) == 0, "the operator to know nothing of them")
        assert f"{RBAC}/namespaces/{another.name}/rolebindings/of-another" == rule == another.lend(namespace)
        until(lambda: runs(operator) == 1, "what is left of them to be seen again")
        with kubelet(another):
            status = another.wait_phase(*FINAL, name="stays")
    assert status["phase"] == "Succeeded" and {step["attempt"] for step in status["steps"]} == {1}
