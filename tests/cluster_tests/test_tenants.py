"""Several namespaces, one operator: the trouble of one tenant is no other's."""

from api import Api, wait_for
from kubelets import NOWHERE
from operators import Namespace
from proxy import HANGS, Asked, Fault, proxy

RUNS = 24


def test_a_namespace_whose_jobs_cannot_be_created_does_not_hold_up_another(
    namespace: Namespace, another: Namespace, api: Api
) -> None:
    """E.g. for an admission webhook that does not answer: each of these passes takes half a minute, and the other's
    comes before all of them have been tried.
    """
    another.lend(namespace)
    hanging: list[Asked] = []

    def hangs(asked: Asked) -> Fault:
        if (asked.verb, asked.resource, asked.namespace) != ("create", "pytorchjobs", another.name):
            return None
        hanging.append(asked)
        return HANGS

    both = ("--namespace", another.name)
    with proxy(api) as before, namespace.operator("localhost/none:1", *both, server=before.url) as operator:
        operator.wait_leads()
        before.fault = hangs
        for number in range(RUNS):
            another.submit(f"stuck-{number}", jobTemplate=NOWHERE)
        wait_for(lambda: len(hanging) >= 4, "the namespace to have all the workers that it gets")
        namespace.submit(jobTemplate=NOWHERE)
        wait_for(namespace.jobs, "a job of the other")
        assert len(hanging) < RUNS
