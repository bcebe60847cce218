"""A job's name that another's job has: waited for, told, and passed over."""

from datetime import timedelta

import pytest
from jobs_world import START, World
from looks import created, step
from tests.support.matchers import has_condition, has_step

from compression_operator.api.status import RunPhase
from compression_operator.core.jobs import CreateJob, JobState, RunEvent
from compression_operator.core.names import job_name


@pytest.fixture
def world() -> World:
    return World()


def test_a_name_that_is_taken_is_waited_for(world: World) -> None:
    first = world.look(crash_after=0).actions[0]
    assert isinstance(first, CreateJob)
    world.foreign.add(first.job.name)
    decision = world.look()
    assert decision.actions == ()
    assert decision.blocked == ("prepare",)
    assert step(world, "prepare").message == f"waits for job {first.job.name} to be removed, which is not this run's"
    world.foreign.clear()
    assert created(world.look()) == ["prepare"]


def test_a_name_that_stays_taken_is_told_and_another_one_is_tried(world: World) -> None:
    first = world.look(crash_after=0).actions[0]
    assert isinstance(first, CreateJob)
    job = first.job
    world.foreign |= {job_name("demo", job.student, job.phase, job.fingerprint, attempt) for attempt in (1, 2)}
    told: list[RunEvent] = []
    for _ in range(8):
        decision = world.look()
        told += decision.events
        if decision.actions:
            break
        again = decision.look_again_seconds
        assert again is not None
        degraded = bool(has_condition(world, "Degraded", "True"))
        world.pass_time(again)
        assert degraded == (world.now - START > timedelta(seconds=60))
    assert created(decision) == ["prepare"] and step(world, "prepare").attempt == 3
    assert has_condition(world, "Degraded", "False")
    said = [(event.type, event.message) for event in told if event.reason == "JobNameTaken"]
    assert said == [("Warning", f"prepare: waits for job {job.name} to be removed, which is not this run's")]
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_no_attempt_begins_beside_a_job_whose_labels_or_owner_somebody_removed(world: World) -> None:
    world.look()
    (name,) = [job.step for job in world.listing()]
    (job,) = world.jobs
    world.update(job, state=JobState.RUNNING, started=world.now)
    world.look()
    hidden = world.jobs.pop(job)
    world.foreign.add(job)
    world.stripped.add(job)
    for _ in range(2):
        decision = world.look()
        assert decision.actions == () and 1 < (decision.look_again_seconds or 0) <= 60
        assert has_step(world, name, state="Running", attempt=1, job_name=job, says="restore them as they were")
        world.pass_time(60)
    assert has_condition(world, "Degraded", "True", reason="JobNotRecognized", says=f"job {job} exists")
    world.foreign.clear()
    world.jobs[job] = hidden
    world.look()
    assert has_step(world, name, state="Running", attempt=1, job_name=job, interruptions=0, message="")
    assert has_condition(world, "Degraded", "False")


def test_once_a_job_that_was_not_recognized_is_deleted_the_next_attempt_begins(world: World) -> None:
    world.look()
    (job,) = world.jobs
    world.jobs.clear()
    world.foreign.add(job)
    world.stripped.add(job)
    world.look()
    world.foreign.clear()
    assert created(world.look()) == ["prepare"]
    assert has_step(world, "prepare", attempt=2)
