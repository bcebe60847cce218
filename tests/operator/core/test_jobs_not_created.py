"""Jobs that cannot be made: their steps wait and say why, and nothing else of the run waits with them."""

from dataclasses import replace
from datetime import timedelta

import pytest
from jobs_world import START, World
from looks import FINETUNED, PREPARED, at, condition, created, deleted, open_jobs, states, step, told
from tests.support.matchers import has_condition, has_step, verdicts

from compression_operator.api.run import CompressionRun
from compression_operator.api.status import RunPhase
from compression_operator.core.jobs import Decision
from compression_operator.core.problems import FORBIDDEN, QUOTA_EXCEEDED, Circumstances, Problem, add_circumstances
from compression_operator.core.reconcile import reconcile
from compression_pipeline.config import ExitClass, Phase

PROBLEM = Problem(QUOTA_EXCEEDED, "the quota is used up")


@pytest.fixture
def world() -> World:
    return World()


def test_its_step_waits_and_what_came_before_is_told(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.succeed(name)
    decision = world.look(refused=[Phase.PRUNE])
    assert states(world)["finetune"] == "Succeeded" and told(decision) == ["StepSucceeded"]
    for student in ("width", "depth"):
        why = "waits because its job cannot be made: the quota is used up"
        assert has_step(world, f"prune-{student}", state="Pending", attempt=0, job_name=None, message=why)
    assert world.status.phase is RunPhase.PRUNING
    assert sorted(created(world.look())) == ["prune-depth", "prune-width"], "and is asked for in every pass"


def test_the_first_job_of_all_cannot_be_made(world: World) -> None:
    world.look(refused=[Phase.PREPARE])
    assert world.status.phase is RunPhase.PENDING and not world.jobs
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_a_job_that_hangs_is_stopped_all_the_same(world: World) -> None:
    at(world, *FINETUNED)
    hangs, done = open_jobs(world)
    world.succeed(done)
    world.pass_time(2000)
    decision = world.look(refused=[Phase.DISTILL])
    assert deleted(decision) == [hangs]
    assert sorted(s for s in states(world).values() if s != "Pending") == ["Succeeded"] * 3


def test_how_an_attempt_ended_is_told_though_the_next_cannot_be_made(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.pass_time(60)
    world.fail(name, ExitClass.INTERRUPTED)
    world.look(refused=[Phase.FINETUNE])
    assert has_step(world, "finetune", state="Pending", attempt=1, job_name=name)
    waits = step(world, "finetune")
    assert waits.last_failure and waits.last_failure.job_name == name


def test_a_job_that_vanished_and_cannot_be_made_again_is_missed(world: World) -> None:
    at(world, *PREPARED)
    world.vanish(open_jobs(world)[0])
    for _ in range(3):
        world.look(refused=[Phase.FINETUNE])
        lost = step(world, "finetune")
        assert (lost.state, lost.attempt, lost.deletions) == ("Pending", 1, 1)
        assert lost.message == "waits because its job cannot be made: the quota is used up"
        assert (
            lost.last_failure
            and lost.last_failure.message == "interrupted: the job was deleted, and not by the operator"
        )
        world.pass_time(40)
    assert created(world.look()) == ["finetune"], "no pause: it was deleted once"


def test_jobs_that_were_deleted_right_after_they_were_made_and_cannot_be_made_again_are_missed(world: World) -> None:
    at(world, *PREPARED)
    world.succeed(open_jobs(world)[0])
    world.look()
    names = open_jobs(world)
    for name in names:
        world.vanish(name)
    world.pass_time(1)
    world.look(refused=[Phase.PRUNE])
    lost = step(world, "prune-width")
    assert (lost.state, lost.message) == ("Pending", "waits because its job cannot be made: the quota is used up")
    assert (
        lost.last_failure and lost.last_failure.message == "interrupted: the job was deleted, and not by the operator"
    )
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_its_place_is_another_steps(world: World) -> None:
    world.edit(maxParallelJobs=1)
    at(world, *FINETUNED)
    world.succeed(open_jobs(world)[0])
    decision = world.look(refused=[Phase.DISTILL])
    assert created(decision) == ["prune-depth"] and states(world)["distill-width"] == "Pending"


def seen(run: CompressionRun, decision: Decision) -> CompressionRun:
    return run.model_copy(update={"status": decision.status})


def test_a_run_that_nothing_goes_on_in_is_held_up_told_once_and_heals(world: World) -> None:
    name = created_name(world)
    refused = {name: PROBLEM.message}
    first = add_circumstances(world.run, reconcile(world.run, [], START, refused), Circumstances(PROBLEM), START)
    assert verdicts(first) == {
        "Ready": ("False", QUOTA_EXCEEDED),
        "Progressing": ("False", QUOTA_EXCEEDED),
        "Degraded": ("True", QUOTA_EXCEEDED),
        "Reconciling": ("True", QUOTA_EXCEEDED),
        "Suspended": ("False", "NotSuspended"),
        "Stalled": ("False", "Pending"),
    }
    assert told(first) == [QUOTA_EXCEEDED]
    run, later = seen(world.run, first), START + timedelta(seconds=30)
    again = add_circumstances(run, reconcile(run, [], later, refused), Circumstances(PROBLEM), later)
    assert again.status == first.status and not again.events, "nothing to write, nothing to tell"
    healed = reconcile(run, [], later)
    assert has_condition(healed, "Degraded", "False", reason="AsExpected")
    assert has_condition(healed, "Progressing", "True")


def test_what_is_denied_is_told_once_beside_trouble_of_many_words(world: World) -> None:
    known = Circumstances(Problem(QUOTA_EXCEEDED, "x" * 990), denied=["y" * 300])
    refused = {created_name(world): "the quota is used up"}
    first = add_circumstances(world.run, reconcile(world.run, [], START, refused), known, START)
    assert told(first) == [FORBIDDEN, QUOTA_EXCEEDED]
    run = seen(world.run, first)
    again = add_circumstances(run, reconcile(run, [], START, refused), known, START)
    assert again.status == first.status and not again.events


def created_name(world: World) -> str:
    world.look(crash_after=0)
    (action,) = reconcile(world.run, [], START).actions
    return action.job.name  # type: ignore[union-attr] # a creation


def test_a_run_in_which_other_jobs_go_on_is_under_way_and_degraded(world: World) -> None:
    at(world, *FINETUNED)
    decision = replace(world.look(), events=())
    found = add_circumstances(world.run, decision, Circumstances(PROBLEM), world.now)
    assert has_condition(found, "Progressing", "True", reason="Pruning")
    assert has_condition(found, "Degraded", "True", reason=QUOTA_EXCEEDED)
    world.fail(open_jobs(world)[0], None)
    shaky = add_circumstances(world.run, world.look(), Circumstances(PROBLEM), world.now)
    assert has_condition(shaky, "Degraded", says="attempt 1 failed")
    assert condition(shaky, "Degraded").message.startswith("the quota is used up; prune-")


def test_a_job_that_was_deleted_and_whose_name_is_taken_gets_another(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.vanish(name)
    world.foreign.add(name)
    assert created(world.look()) == ["finetune"]
    assert step(world, "finetune").job_name != name
