"""Pods that do not run, told of by a real scheduler."""

from api import Body
from kubelets import NOWHERE
from operators import Namespace
from tests.support.matchers import has_condition, has_step
from tests.support.waiting import until


def ours(namespace: Namespace, reason: str) -> list[Body]:
    """Events of this reason on the run; the training operator has its own on the job."""
    events = [event for event in namespace.events() if event["regarding"]["kind"] == "CompressionRun"]
    return [event for event in events if event["reason"] == reason]


def test_pods_that_find_no_place_degrade_the_run_after_a_while(namespace: Namespace) -> None:
    with namespace.operator("localhost/none:1", "--resync-seconds", "600"):
        namespace.submit(jobTemplate=NOWHERE)
        until(lambda: has_step(namespace.status(), "prepare", says="cannot be scheduled"), "the words")
        until(
            lambda: has_condition(namespace.status(), "Degraded", "True", reason="Unschedulable"),
            "it to be woken up when the wait begins to count",
        )
        status = namespace.status()
        assert has_condition(status, "Ready", reason="Unschedulable")
        assert has_condition(status, "Reconciling", "True") and has_condition(status, "Stalled", "False")
        events = until(lambda: ours(namespace, "Unschedulable"), "the Event")
        assert [event["type"] for event in events] == ["Warning"], events
        assert events[0]["note"].startswith("prepare, attempt 1: pod ")
