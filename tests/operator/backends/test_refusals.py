"""Pods that are not made: the API server's words are on the run, and they are asked for again at once."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kopf
import pytest
from api_world import RUN, ApiWorld, Operator, refused, run_in_world
from http_server import Server, served
from jobs_world import manifest
from tests.support.matchers import has_condition
from tests.support.waiting import until_async

from compression_operator.backends.pods import refusals
from compression_operator.backends.pods.podview import view, wait
from compression_operator.backends.pods.refusals import LOOK, TRIED_AGAIN, PodRefusals, refusal, with_early_recheck
from compression_operator.backends.pytorchjob.kind import PYTORCHJOB, PYTORCHJOBS
from compression_operator.core.jobs import Decision, JobState, ObservedJob, WaitReason
from compression_operator.kube.client import EVENTS, Kube
from compression_operator.kube.denied_permissions import Denials

START = datetime(2026, 11, 1, 12, tzinfo=UTC)
QUOTA = 'pods "j-master-0" is forbidden: exceeded quota: pods, requested: pods=1, used: pods=5, limited: pods=5'
WORDS = {
    "quota on pods": QUOTA,
    "quota on requests": 'pods "j-master-0" is forbidden: failed quota: cpus: must specify requests.cpu for: pytorch',
    "LimitRange": 'pods "j-master-0" is forbidden: maximum cpu usage per Container is 1, but limit is 4',
    "PriorityClass": 'pods "j-master-0" is forbidden: no PriorityClass with name high was found',
    "admission policy": "admission webhook \"gate.example\" denied the request: no label cost-centre",
    "PodSecurity": 'pods "j-master-0" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
}  # fmt: skip
DENIED = 'User "x" cannot list resource "events" in API group "events.k8s.io" in the namespace "default"'
INIT = (
    'pods "j-worker-0" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false '
    '(container "init-pytorch" must set securityContext.allowPrivilegeEscalation=false)'
)


def event(note: str, *, uid: str = "u", at: str = "2026-11-01T12:00:05Z", **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"creationTimestamp": at},
        "regarding": {"uid": uid},
        "note": f"Error creating: {note}",
        "deprecatedLastTimestamp": at,
        **more,
    }


def a_job() -> ObservedJob:
    lacking = "no pods have been made for it: a quota or another rule refuses them; `kubectl describe` has the reason"
    waiting = wait(WaitReason.PODS_NOT_CREATED, lacking, START, told_after=timedelta(seconds=30))
    return ObservedJob("j", "prepare", "f", 1, JobState.PENDING, alive=False, created=START, waiting=waiting)


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_newest_words_count(words: str) -> None:
    others = [
        event("older", at="2026-11-01T12:00:04Z"),
        event("of another job", uid="x", at="2027-01-01T00:00:00Z"),
        {"note": "of nobody"},
    ]
    assert refusal([*others, event(words)], "u") == words
    assert refusal(others[1:], "u") == ""
    series = event("in a series", at="2026-11-01T11:00:00Z", series={"lastObservedTime": "2026-11-01T13:00:00.000001Z"})
    assert refusal([event(words), series], "u") == "in a series"


def test_the_init_container_of_the_training_operator_is_named_and_how_to_mend_it() -> None:
    said = PYTORCHJOB.explain(refusal([event(INIT)], "u"))
    assert said.startswith(INIT)
    assert "give it one by the training operator's template" in said
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    assert "--pytorch-init-container-template-file" in readme


def test_of_an_init_container_that_waited_in_vain_the_network_is_named() -> None:
    status = {"name": "init-pytorch", "state": {"terminated": {"exitCode": 1}}}
    pod: dict[str, Any] = {"metadata": {"name": "j-worker-0"}}
    pod["status"] = {"phase": "Failed", "initContainerStatuses": [status]}
    said = view(pod, START, PYTORCHJOB).disruption
    assert said.startswith("pod j-worker-0: init container init-pytorch ended with code 1; it could not look up")
    assert "NetworkPolicy" in said
    pod["status"] = {"phase": "Failed", "initContainerStatuses": [status | {"name": "mine"}]}
    assert view(pod, START, PYTORCHJOB).disruption.endswith("init container mine ended with code 1")


def test_a_run_that_lacks_pods_is_looked_at_again_soon() -> None:
    calm = replace(a_job(), waiting=None)
    decision = Decision(manifest().status, ())
    assert with_early_recheck(decision, [calm]) == decision
    assert with_early_recheck(decision, [calm, a_job()]).look_again_seconds == LOOK.total_seconds()
    assert with_early_recheck(replace(decision, look_again_seconds=1.0), [a_job()]).look_again_seconds == 1.0


def test_events_are_read_and_pods_asked_for_again_at_a_bounded_rate() -> None:
    async def scenario(server: Server, url: str) -> None:
        kube = Kube(lambda: kopf.ConnectionInfo(server=url))
        asks = PodRefusals(kube, Denials(lambda _: None))
        told = [
            await asks.explain_wait(a_job(), PYTORCHJOB, "ns", "u", START + timedelta(seconds=s))
            for s in (1, 9, 10, 11, 19, 20, 21)
        ]
        assert [QUOTA in job.message for job in told] == [False, False, True, True, True, True, True]
        assert told[2].waiting is not None and told[2].waiting.told_from == START + timedelta(seconds=10)
        assert told[2].waiting.counts_from == START + timedelta(seconds=60), "it counts as before"
        assert told[2].message == f"no pods have been made for it: {QUOTA}"
        assert [method for method, *_ in server.asked] == ["GET", "PATCH", "GET", "PATCH"]
        query = server.asked[0][1]
        assert "regarding.name%3Dj" in query and "reason%3DFailedCreatePod" in query
        assert server.asked[1][2] == {"metadata": {"annotations": {TRIED_AGAIN: "2026-11-01T12:00:10Z"}}}
        assert (await asks.explain_wait(replace(a_job(), waiting=None), PYTORCHJOB, "ns", "u", START)).message == ""
        await kube.close()

    with served() as (server, url):
        page = {"metadata": {"resourceVersion": "1"}, "items": [event(QUOTA)]}
        server.answer = lambda method, path: (200, page if method == "GET" else {}, {})
        asyncio.run(scenario(server, url))


def test_a_run_tells_why_and_says_which_right_it_lacks_to_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = EVENTS.path("default")

    async def scenario(api: ApiWorld) -> None:
        async with Operator():
            await until_async(lambda: api.names(PYTORCHJOBS), "the job")
            (job,) = api.names(PYTORCHJOBS)
            told = event(QUOTA, uid=api.objects[job]["metadata"]["uid"])
            answers = [refused(403, DENIED)]
            api.fault = lambda method, path: answers[0] if method == "GET" and path.startswith(listing) else None
            await until_async(
                lambda: has_condition(api, "Degraded", "True", reason="Forbidden"),
                "the run to tell that it may not read Events",
            )
            answers[0] = 200, {"metadata": {"resourceVersion": "1"}, "items": [told]}, {}
            await until_async(
                lambda: QUOTA in str(api.objects[RUN]["status"]["steps"]), "the step to tell of the quota"
            )
            await until_async(lambda: has_condition(api, "Degraded", "False"), "the run to be well again")
            await until_async(
                lambda: TRIED_AGAIN in api.objects[job]["metadata"].get("annotations", {}),
                "the job to be marked as tried again",
            )

    monkeypatch.setattr(refusals, "LOOK", timedelta(seconds=1))
    run_in_world(scenario, tmp_path, monkeypatch)
