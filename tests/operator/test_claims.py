"""The warning about claims of one node: only where it matters, and told once."""

from typing import Any

import pytest
from jobs_world import START, World, manifest

from compression_operator.api.run import CompressionRun
from compression_operator.backends.claims import REASON, advised, several, warning
from compression_operator.jobs import Decision
from compression_operator.reconcile import reconcile

PHASES = ("prepare", "finetune", "prune", "distill", "export")


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
    world = World()
    first = advised(world.run, reconcile(world.run, [], START), "claim c is small")
    assert [n.message for n in first.notices if n.reason == REASON] == ["claim c is small"]
    after = world.run.model_copy(update={"status": first.status})
    second = advised(after, reconcile(after, [], START), "claim c is small")
    assert second.status == first.status and not [n for n in second.notices if n.reason == REASON]
    (progressing,) = [c for c in second.status.conditions if c.type == "Progressing"]
    assert progressing.message.endswith("note that claim c is small")
    metadata = after.metadata.model_copy(update={"generation": 2})
    edited = after.model_copy(update={"metadata": metadata})
    third = advised(edited, reconcile(edited, [], START), "claim c is small")
    assert [n for n in third.notices if n.reason == REASON]


def test_a_finished_run_is_past_advice() -> None:
    world = World()
    world.drive()
    decision = Decision(world.status)
    assert advised(world.run, decision, "claim c is small") is decision
