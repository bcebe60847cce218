"""Requests about the lease that get no answer: how long each may take is tested in virtual time (test_leader.py)."""

from api import Api
from operators import Namespace
from proxy import HANGS, Asked, Fault, proxy
from tests.support.waiting import until

LEASE = "/apis/coordination.k8s.io/v1/namespaces/{}/leases/compression-operator"


def test_a_lease_request_without_an_answer_costs_a_leader_nothing(namespace: Namespace, api: Api) -> None:
    """It is given up and asked again in time, be it a read or a write."""

    def renewed() -> str:
        return api.call("GET", LEASE.format(namespace.name))["spec"]["renewTime"]

    with proxy(api) as before, namespace.operator(server=before.url) as operator:
        operator.wait_leads()
        ended = operator.process.poll
        for verb in ("get", "update"):
            hung: list[Asked] = []

            def hangs(asked: Asked, verb: str = verb, hung: list[Asked] = hung) -> Fault:
                if asked.resource != "leases" or asked.verb != verb or hung:
                    return None
                hung.append(asked)
                return HANGS

            before.fault = hangs
            until(lambda hung=hung: hung, f"the lease's {verb} to hang")
            was = renewed()
            until(lambda was=was: renewed() != was or ended() is not None, "the lease to be renewed")
            assert ended() is None and operator.leads(), operator.output()[-2000:]
