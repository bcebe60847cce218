"""Interruptions never count against retryLimit; those that keep a step from getting anywhere slow down and are told."""

import re
from datetime import timedelta

import pytest
from jobs_world import World, manifest
from looks import PREPARED, at, condition, created, open_jobs, step
from tests.support.matchers import has_condition, has_step

from compression_operator.api.attempts import Progress
from compression_operator.api.status import CompressionRunStatus, RunPhase
from compression_operator.core.conditions import FINISHED
from compression_operator.core.jobs import Decision, JobState
from compression_pipeline.config import ExitClass

REFUSED = "pod demo-master-0: UnexpectedAdmissionError: Allocate failed due to no healthy devices"


@pytest.fixture
def world() -> World:
    world = World(manifest(phases={phase: {"retryLimit": 0} for phase in ("prepare", "finetune")}))
    return at(world, *PREPARED)


def interrupt(world: World) -> Decision:
    (name,) = open_jobs(world)
    failed = {"state": JobState.FAILED, "interrupted": True, "alive": False, "ended": world.now}
    world.update(name, **failed, message=REFUSED)
    return world.look()


def come_to(world: World, done: int) -> None:
    (name,) = open_jobs(world)
    world.pass_time(60)
    world.update(name, progress=Progress(step=done, total_steps=200), last_event=world.now)
    world.look()


def kinds(decision: Decision) -> list[str]:
    return [event.type for event in decision.events if event.reason == "StepInterrupted"]


def test_a_node_that_refuses_every_pod_makes_no_storm_and_is_told(world: World) -> None:
    """A broken device plugin: there were 401 attempts in 67 minutes, and Degraded was False."""
    end, attempts, told = world.now + timedelta(minutes=67), 0, []
    while world.now < end:
        decision = world.look()
        if open_jobs(world):
            attempts += 1
            decision = interrupt(world)
            told.append((kinds(decision), condition(world, "Degraded").reason))
        world.pass_time(decision.look_again_seconds or 1)
    assert attempts < 15
    assert told[:3] == [(["Normal"], "AsExpected"), (["Normal"], "AsExpected"), (["Warning"], "Interrupted")]
    assert has_condition(world, "Degraded", "True", says=REFUSED)
    assert has_condition(world, "Degraded", says=f"finetune: {attempts} attempts in a row were interrupted")
    assert step(world, "finetune").failures == 0 and world.status.phase not in FINISHED
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_the_pause_doubles_up_to_ten_minutes(world: World) -> None:
    pauses: list[float] = []
    for _ in range(9):
        world.pass_time(3600)  # however long the attempt took
        again = interrupt(world).look_again_seconds or 0
        pauses.append(again)
        world.pass_time(again)
        world.look()
    assert pauses[1:] == [20, 40, 80, 160, 320, 600, 600, 600]


def test_evictions_with_progress_in_between_are_resumed_at_once(world: World) -> None:
    for number in range(1, 8):
        come_to(world, 10 * number)
        decision = interrupt(world)
        assert (created(decision), kinds(decision)) == (["finetune"], ["Normal"])
        assert has_condition(world, "Degraded", "False")
        assert step(world, "finetune").interruptions == 1


def test_progress_that_was_made_before_is_none(world: World) -> None:
    """Every attempt starts at the same checkpoint and is interrupted before the next."""
    come_to(world, 20)
    for _ in range(3):
        world.pass_time(interrupt(world).look_again_seconds or 0)
        world.look()
        come_to(world, 20)
    assert step(world, "finetune").interruptions == 3
    assert has_condition(world, "Degraded", reason="Interrupted")
    come_to(world, 21)
    assert step(world, "finetune").interruptions == 0
    assert has_condition(world, "Degraded", "False"), "it goes on"


def test_an_edit_starts_at_once_whatever_was_interrupted(world: World) -> None:
    for _ in range(4):
        world.pass_time(interrupt(world).look_again_seconds or 0)
        world.look()
    interrupt(world)
    assert open_jobs(world) == []
    world.edit(maxParallelJobs=2)
    assert created(world.look()) == ["finetune"]
    assert step(world, "finetune").interruptions == 0


def delete_all(world: World) -> None:
    """As a clean-up does, before a listing shows them."""
    for name in open_jobs(world):
        world.vanish(name)


@pytest.mark.parametrize("seen", [True, False])
def test_a_clean_up_that_deletes_every_job_makes_no_storm_and_is_told(world: World, seen: bool) -> None:
    """There was a new job for every one that was deleted, without a pause and without a word."""
    end, made, told = world.now + timedelta(minutes=67), 0, []
    while world.now < end:
        decision = world.look()
        made += len(created(decision))
        told += [event.message for event in decision.events if event.reason == "StepInterrupted"]
        if seen and open_jobs(world):
            world.start(open_jobs(world)[0])
            world.look()
        delete_all(world)
        world.pass_time(1)
    waits = step(world, "finetune")
    assert 8 <= made < 15 and made <= waits.deletions == waits.interruptions <= made + 1
    assert told[0].endswith("interrupted: the job was deleted, and not by the operator")
    assert "the job was deleted 4 times in a row, and not by the operator: look for what deletes jobs here" in told[3]
    assert told[3].endswith(f"; again at {times(told[3])} UTC")
    often = f"deleted {waits.deletions} times in a row"
    assert has_condition(world, "Degraded", "True", reason="Interrupted", says=often)
    assert waits.failures == 0 and world.status.phase not in FINISHED
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def times(message: str) -> str:
    return re.findall(r"\d\d:\d\d:\d\d", message)[-1]


def test_the_first_job_that_is_deleted_comes_again_at_once_and_the_next_after_a_pause(world: World) -> None:
    made: list[float] = []
    began = world.now
    while len(made) < 4:
        delete_all(world)
        decision = world.look()
        made += [(world.now - began).total_seconds() for _ in created(decision)]
        if created(decision):
            world.start(open_jobs(world)[0])
            world.look()
        else:
            waits = step(world, "finetune")
            assert waits.retry_time and waits.message.startswith(f"tries again at {waits.retry_time:%H:%M:%S} UTC")
            world.pass_time(decision.look_again_seconds or 0)
    assert made == [0, 20, 60, 140]


def test_jobs_that_are_deleted_after_they_came_further_come_again_at_once(world: World) -> None:
    for number in range(1, 6):
        come_to(world, 10 * number)
        delete_all(world)
        assert created(world.look()) == ["finetune"]
        assert has_step(world, "finetune", deletions=1) and has_condition(world, "Degraded", "False")
        world.start(open_jobs(world)[0])


def test_a_job_that_somebody_deletes_with_its_pods_first_says_so_and_where_it_stopped(world: World) -> None:
    """A deletion in the foreground: the job stays in sight until its pods have ended."""
    (name,) = open_jobs(world)
    world.pass_time(60)
    world.update(name, deleting=True)
    assert created(world.look()) == []
    world.fail(name, ExitClass.INTERRUPTED)
    world.look()
    failure = step(world, "finetune").last_failure
    assert (
        failure
        and failure.message == f"interrupted: the job was deleted, and not by the operator; Interrupted of {name}"
    )
    assert step(world, "finetune").deletions == 1


def test_a_status_of_before_such_deletions_were_counted_is_read(world: World) -> None:
    old = world.status.to_json()
    for one in old["steps"]:
        one.pop("deletions", None)
    assert CompressionRunStatus.model_validate(old) == world.status
