"""What the tests of the reconciler say: where a run stands, what was decided."""

from typing import Any

from jobs_world import World
from tests.support.matchers import status_of

from compression_operator.api.status import Condition, Step
from compression_operator.core.jobs import CreateJob, Decision, DeleteJob
from compression_pipeline.config import Phase


def at(world: World, *done: Phase) -> World:
    """The world with all jobs of these phases done, and the next ones running."""
    world.look()
    for _ in done:
        finish(world)
    for name in open_jobs(world):
        world.start(name)
    world.look()
    return world


def finish(world: World, *steps: str) -> None:
    """Let the open jobs do well, of these steps if any are named."""
    for name in open_jobs(world):
        if steps and world.jobs[name].job.step not in steps:
            continue
        world.start(name)
        world.succeed(name)
    world.look()


def open_jobs(world: World) -> list[str]:
    return [name for name, truth in world.jobs.items() if not truth.gone and truth.seen.ended_as is None]


def step(world: World, name: str) -> Step:
    found = world.status.step(name)
    assert found, name
    return found


def states(world: World) -> dict[str, str]:
    return {step.name: step.state.value for step in world.status.steps}


def condition(of: Any, kind: str) -> Condition:
    """Of whatever has a status (see matchers.py)."""
    (found,) = (one for one in status_of(of)["conditions"] if one["type"] == kind)
    return Condition.model_validate(found)


def created(decision: Decision) -> list[str]:
    return [action.job.step for action in decision.actions if isinstance(action, CreateJob)]


def deleted(decision: Decision) -> list[str]:
    return [action.name for action in decision.actions if isinstance(action, DeleteJob)]


def told(decision: Decision) -> list[str]:
    return [event.reason for event in decision.events]


PREPARED = (Phase.PREPARE,)
FINETUNED = (*PREPARED, Phase.FINETUNE)
PRUNED = (*FINETUNED, Phase.PRUNE)
