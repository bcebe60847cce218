"""Jobs of several pods that do not all find a place: waiting is no fault, however long, and nobody starves."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_world import World, manifest, student
from looks import PRUNED, at, created, deleted, open_jobs, step, told
from test_waiting import observe, seen
from tests.support.matchers import has_condition

from compression_operator.api.status import RunPhase, StepState
from compression_operator.core.jobs import JobState

LIMIT = 600


def gang(limit: int = LIMIT, **spec: Any) -> World:
    """Whose distillations are to start."""
    phases = {"distill": {"nodes": 2, "rendezvousTimeoutSeconds": limit}}
    world = at(World(manifest(phases=phases, **spec)), *PRUNED)
    for name in open_jobs(world):
        world.update(name, state=JobState.PENDING, started=None, last_event=None)
    return world


def test_an_attempt_gives_its_places_back_and_waits_on() -> None:
    world = gang(students=[student("width", hiddenSize=128)])
    (name,), of = open_jobs(world), "distill-width"
    world.look()
    world.place_half(name)
    assert world.look().look_again_seconds == 60
    world.pass_time(60)
    assert told(world.look()) == ["Unschedulable"]
    world.pass_time(LIMIT - 60)
    decision = world.look()
    assert deleted(decision) == [name] and told(decision) == ["StepInterrupted"]
    assert (step(world, of).state, step(world, of).failures) == (StepState.PENDING, 0)
    assert "gave back the places of its other pods after rendezvousTimeoutSeconds (600)" in step(world, of).message
    for kind in ("Degraded", "Ready"):
        assert has_condition(world, kind, reason="Unschedulable"), "it still waits"
    world.vanish(name)
    world.pass_time(9)
    assert created(world.look()) == []
    world.pass_time(11)
    assert created(world.look()) == [of]
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


@settings(max_examples=12, deadline=None)
@given(waits=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5000)), max_size=10))
def test_whatever_waits_for_however_long_nothing_fails(waits: list[tuple[int, int]]) -> None:
    world = World(manifest(maxParallelJobs=3))
    for which, passed in waits:
        world.look()
        pending = [name for name in open_jobs(world) if world.jobs[name].seen.state is JobState.PENDING]
        if pending:
            world.place_half(pending[which % len(pending)])
        for _ in range(1 + passed // 500):
            world.pass_time(min(passed, 500))
            world.look()
            for name in [name for name, truth in world.jobs.items() if truth.seen.deleting and not truth.gone]:
                world.settle(name)
        assert all(not one.failures and one.state is not StepState.FAILED for one in world.status.steps)
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_of_two_that_have_half_of_what_both_need_each_gets_through() -> None:
    """Two places, two students that need both at once, and a scheduler that gives one to each."""
    world = gang(limit=20)
    places: dict[str, int] = {}
    for _ in range(3600):
        decision = world.look()
        for name, truth in list(world.jobs.items()):
            if truth.seen.deleting:
                places.pop(name, None)
                world.settle(name)
        waiting = [name for name in open_jobs(world) if world.jobs[name].seen.state is JobState.PENDING]
        for name in sorted(waiting, key=lambda name: places.get(name, 0)):
            if sum(places.values()) < 2:
                places[name] = places.get(name, 0) + 1
        for name in open_jobs(world):
            truth = world.jobs[name]
            needed = 2 if truth.job.step.startswith("distill") else 1
            if places.get(name, 0) == needed:
                if truth.seen.state is JobState.PENDING:
                    world.start(name)
                else:
                    world.succeed(name)
                    places.pop(name)
            elif places.get(name) and truth.seen.half_placed is None:
                world.place_half(name)
        if world.status.phase is RunPhase.SUCCEEDED:
            break
        world.pass_time(1)
    assert world.status.phase is RunPhase.SUCCEEDED, decision.status.to_json()
    assert sum(one.failures for one in world.status.steps) == 0


@pytest.mark.parametrize("other", ["unschedulable", "gated"])
def test_half_a_job_has_its_place_while_the_scheduler_finds_none_for_the_rest(other: str) -> None:
    job, placed = seen("unschedulable")
    _, unplaced = seen("unschedulable")
    job["spec"]["pytorchReplicaSpecs"] = {"Master": {"replicas": 1}, "Worker": {"replicas": 1}}
    unplaced["metadata"] |= {"name": "other", "uid": "other"}
    if other == "gated":
        unplaced["status"]["conditions"][0]["reason"] = "SchedulingGated"
    placed["spec"]["nodeName"] = "node"
    since = "2026-11-21T06:53:09Z"
    placed["status"]["conditions"] = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": since}]
    found = observe(job, placed, unplaced, at="2026-11-21T09:00:00Z")
    assert (found.half_placed is not None) == (other == "unschedulable")
    assert observe(job, unplaced, at="2026-11-21T09:00:00Z").half_placed is None
    assert observe(job, placed, at="2026-11-21T09:00:00Z").half_placed is None
    if found.half_placed:
        assert f"{found.half_placed:%FT%TZ}" == since
