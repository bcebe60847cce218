"""The warning about claims of one node: only where it matters, and told once."""

import asyncio
from pathlib import Path
from typing import Any

import kopf
import pytest
from api_world import CLAIM, RUN, ApiWorld, Operator, refused, world
from jobs_world import START, World, manifest
from looks import condition
from tests.support.waiting import until_async

from compression_operator.api.run import CompressionRun
from compression_operator.backends.pods.pvc_access_modes import REASON, ClaimAdvice, several, warning
from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.core.jobs import Decision, RunEvent
from compression_operator.core.problems import QUOTA_EXCEEDED, Circumstances, Problem, add_circumstances
from compression_operator.core.reconcile import reconcile
from compression_operator.kube.client import RUNS, Kube
from compression_operator.kube.denied_permissions import Denials

PHASES = ("prepare", "finetune", "prune", "distill", "export")

ADVICE = Circumstances(advice=Problem(REASON, "claim c is small"))


def run(**spec: Any) -> CompressionRun:
    return manifest(**spec)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({}, "maxParallelJobs is 2 and there are 2 students"),
        ({"maxParallelJobs": 1}, None),
        ({"maxParallelJobs": 1, "phases": {"distill": {"nodes": 4}}}, "phases.distill.nodes is 4"),
        ({"students": [{"name": "one", "prune": {"hiddenSize": 64}}]}, None),
        ({"jobTemplate": {"nodeSelector": {"kubernetes.io/hostname": "a"}}}, None),
        (
            {
                "jobTemplate": {"nodeSelector": {"kubernetes.io/hostname": "a"}},
                "phases": {"export": {"nodeSelector": {}}},
            },
            "maxParallelJobs is 2 and there are 2 students",
        ),
        ({"phases": {p: {"nodeSelector": {"kubernetes.io/hostname": "a"}} for p in PHASES}}, None),
        ({"jobTemplate": {"nodeSelector": {"zone": "a"}}}, "maxParallelJobs is 2 and there are 2 students"),
    ],
)
def test_when_pods_may_want_several_nodes(spec: dict[str, Any], why: str | None) -> None:
    assert several(run(**spec)) == why


def test_which_claims_can_be_mounted_everywhere() -> None:
    assert warning("c", ["ReadWriteOnce", "ReadWriteMany"], "x") == "" and warning("c", [], "x") == ""
    assert warning("c", ["ReadWriteOnce"], "x").startswith("claim c is ReadWriteOnce, and pods")
    assert "ReadWriteOncePod" in warning("c", ["ReadWriteOncePod"], "x")


def test_it_is_told_once_a_generation_and_stays_in_the_message() -> None:
    one = World(manifest(suspend=True))  # none of its jobs is missed meanwhile
    first = add_circumstances(one.run, reconcile(one.run, [], START), ADVICE, START)
    assert [n.message for n in first.events if n.reason == REASON] == ["claim c is small"]
    after = one.run.model_copy(update={"status": first.status})
    second = add_circumstances(after, reconcile(after, [], START), ADVICE, START)
    assert second.status == first.status and not [n for n in second.events if n.reason == REASON]
    assert condition(second, "Progressing").message.endswith("note that claim c is small")
    metadata = after.metadata.model_copy(update={"generation": 2})
    edited = after.model_copy(update={"metadata": metadata})
    third = add_circumstances(edited, reconcile(edited, [], START), ADVICE, START)
    assert [n for n in third.events if n.reason == REASON]


def test_a_finished_run_is_past_advice() -> None:
    one = World()
    one.drive()
    decision = Decision(one.status)
    assert add_circumstances(one.run, decision, ADVICE, START) is decision


QUOTA = 'pytorchjobs.kubeflow.org "x" is forbidden: exceeded quota: q, used: count/pytorchjobs=5'


def test_it_is_told_once_of_a_run_that_is_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its conditions tell what holds it up, and each pass took that for a warning that was not told yet."""
    jobs = PYTORCHJOBS.path("default")

    async def scenario(api: ApiWorld) -> None:
        async with Operator() as service:
            await until_async(
                lambda: api.requests("POST", jobs) >= 4 and {REASON, QUOTA_EXCEEDED} <= {*api.events},
                "the quota to be met, and a warning of the claim",
            )
            assert (api.events.count(REASON), api.events.count(QUOTA_EXCEEDED)) == (1, 1)
            for change in (api.edit, api.touch, api.touch):
                asked = api.requests("POST", jobs)
                service.note_event(RUNS, "MODIFIED", change(RUN))
                await until_async(
                    lambda asked=asked: api.requests("POST", jobs) > asked and api.events.count(REASON) > 1,
                    "another try, and a second warning",
                )
            assert api.events.count(REASON) == 2, "it may have been edited for the warning's sake"

    with world(tmp_path) as (api, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        api.put(CLAIM, {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}})
        api.fault = lambda method, path: refused(403, QUOTA) if (method, path) == ("POST", jobs) else None
        asyncio.run(scenario(api))


def test_of_how_many_runs_it_was_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression_operator.backends.pods.pvc_access_modes.REMEMBERED", 2)
    kube = Kube(lambda: kopf.ConnectionInfo(server="http://127.0.0.1:1"))
    claims, runs = ClaimAdvice(kube, Denials(lambda _: None)), [named(f"uid-{n}") for n in range(3)]
    for one in runs:
        claims.note_reported(one, RunEvent("Normal", "JobCreated", ""))
        assert not claims.was_reported(one)
        claims.note_reported(one, RunEvent("Warning", REASON, ""))
    assert [claims.was_reported(one) for one in runs] == [False, True, True]


def named(uid: str) -> CompressionRun:
    one = run()
    return one.model_copy(update={"metadata": one.metadata.model_copy(update={"uid": uid})})
