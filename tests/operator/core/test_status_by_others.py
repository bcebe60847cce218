"""A status into which somebody else has written: what he may own stays, what follows from the steps follows again."""

import pytest
from jobs_world import START, World
from looks import FINETUNED, at, condition, deleted

from compression_operator.api.status import Condition, RunPhase


def write(world: World, **changes: object) -> None:
    world.run = world.run.model_copy(update={"status": world.status.model_copy(update=changes)})


@pytest.mark.parametrize("phase", [RunPhase.FAILED, RunPhase.SUCCEEDED])
def test_a_phase_that_is_forced_while_jobs_run_is_not_believed(phase: RunPhase) -> None:
    world = at(World(), *FINETUNED)
    before = world.status
    write(world, phase=phase)
    world.pass_time(5)
    decision = world.look()
    assert world.status == before and deleted(decision) == []
    assert world.status.start_time == before.start_time
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


@pytest.mark.parametrize("phase", [RunPhase.FAILED, RunPhase.PENDING, RunPhase.DISTILLING])
def test_a_phase_that_is_forced_on_a_finished_run_is_not_believed(phase: RunPhase) -> None:
    world = World()
    world.drive()
    done = world.status
    write(world, phase=phase)
    assert not world.look().actions and world.status == done


def test_a_phase_that_is_forced_on_a_run_without_steps_is_not_believed() -> None:
    world = World()
    write(world, phase=RunPhase.FAILED)
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


@pytest.mark.parametrize("finished", [False, True])
def test_conditions_of_other_managers_are_kept(finished: bool) -> None:
    world = World()
    if finished:
        world.drive()
    else:
        at(world, *FINETUNED)
    theirs = Condition(type="example.com/Approved", status="True", last_transition_time=START, reason="ByHand")
    write(world, conditions=[theirs, *(one for one in world.status.conditions if one.type != "Ready")])
    world.look()
    assert condition(world, "example.com/Approved") == theirs
    assert condition(world, "Ready").reason
    world.drive()
    assert condition(world, "example.com/Approved") == theirs
