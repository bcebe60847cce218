"""How long the jobs of a run stay that have ended, and what a run is without them."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs_world import START, World, manifest
from looks import FINETUNED, PREPARED, at, created, deleted, finish, open_jobs, states, step

from compression_operator.api.status import RunPhase, Step, StepState
from compression_operator.core.jobs import JobState, ObservedJob
from compression_operator.core.retention import Retention, expiries
from compression_pipeline.config import ExitClass, Phase

MARK = "f" * 32
PAST = START + timedelta(days=400)


def attempts(world: World, name: str) -> list[int]:
    return [truth.seen.attempt for truth in world.jobs.values() if truth.job.step == name]


def what_is_deleted_goes(world: World) -> None:
    for name, truth in list(world.jobs.items()):
        if truth.seen.deleting:
            world.vanish(name)
    world.catch_up()


@pytest.mark.parametrize(("limit", "kept"), [(3, [5, 6, 7]), (1, [7]), (0, [])])
def test_the_newest_ended_jobs_of_a_step_stay(limit: int, kept: list[int]) -> None:
    world = World(manifest(phases={"prepare": {"retryLimit": 100}}, jobHistoryLimit=limit))
    for _ in range(7):
        world.pass_time(world.look().look_again_seconds or 0)
        world.look()
        world.start(open_jobs(world)[0])
        world.fail(open_jobs(world)[0], None)
        what_is_deleted_goes(world)
    world.look()
    what_is_deleted_goes(world)
    assert attempts(world, "prepare") == kept
    failure = step(world, "prepare").last_failure
    assert failure and failure.attempt == 7, "what became of it is told all the same"


def test_one_that_is_listed_twice_and_lives_by_one_of_them_goes_with_the_next_look() -> None:
    """Which of the two is the newer one is nobody's knowledge."""
    world = World(manifest(jobHistoryLimit=0))
    world.look()
    (name,) = open_jobs(world)
    world.start(name)
    world.catch_up()
    world.succeed(name)
    assert not deleted(world.look(twice=frozenset({name})))
    assert deleted(world.look()) == [name]


def test_one_that_failed_and_lives_by_one_of_two_listings_is_stopped() -> None:
    world = World()
    world.look()
    (name,) = open_jobs(world)
    world.catch_up()
    world.fail(name, ExitClass.INTERRUPTED)
    assert deleted(world.look(twice=frozenset({name}))) == [name]


def test_of_one_whose_pod_is_lost_the_time_begins_when_that_is_told() -> None:
    world = World(manifest(ttlSecondsAfterFinished=20))
    world.look()
    (name,) = open_jobs(world)
    world.start(name)
    world.lose_pod(name)
    world.settle(name)
    assert not deleted(world.look())
    world.pass_time(19)
    assert not deleted(world.look())
    world.pass_time(1)
    assert deleted(world.look()) == [name]


def test_jobs_go_by_themselves_when_their_time_is_over() -> None:
    world = World(manifest(ttlSecondsAfterFinished=4000))
    world.drive()
    before = world.status
    again = world.look().look_again_seconds
    assert again and 3900 < again <= 4000
    world.pass_time(again)
    first = deleted(world.look())
    assert first and "-prepare-" in first[0]
    world.pass_time(4000)
    world.look()
    what_is_deleted_goes(world)
    assert world.jobs == {} and world.look().look_again_seconds is None
    assert world.status == before, "the run is as done as it was"


def test_a_run_whose_jobs_are_gone_is_edited_like_any_other() -> None:
    world = World(manifest(ttlSecondsAfterFinished=0))
    at(world, *FINETUNED)
    what_is_deleted_goes(world)
    assert {truth.job.phase for truth in world.jobs.values()} == {Phase.PRUNE}, "the others are done and gone"
    world.drive()
    what_is_deleted_goes(world)
    world.edit(distill={"steps": 101})
    assert created(world.look()) == ["distill-width", "distill-depth"]
    assert states(world)["prune-width"] == "Succeeded"
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED
    assert len(world.names) == 8 + 4, "nothing ran again for want of its job"


def test_a_failed_job_that_is_gone_is_not_tried_again() -> None:
    world = World(manifest(ttlSecondsAfterFinished=0))
    at(world, *PREPARED)
    world.fail(open_jobs(world)[0], ExitClass.USER_ERROR)
    world.look()
    what_is_deleted_goes(world)
    world.pass_time(1000)
    assert world.look().actions == () and world.status.phase is RunPhase.FAILED
    failed = step(world, "finetune")
    assert failed.last_failure and failed.last_failure.message == f"UserError of {failed.last_failure.job_name}"


@pytest.mark.parametrize("dies_after", [0, 1, 2])
def test_an_end_is_told_before_its_job_goes_whenever_the_operator_dies(dies_after: int) -> None:
    """Pods of it still run: it is stopped at once, and without its status nobody would know why it failed."""
    world = World(manifest(jobHistoryLimit=0, phases={"finetune": {"retryLimit": 0}}))
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.fail(name, None, alive=True)
    world.look(crash_after=dies_after)
    what_is_deleted_goes(world)
    world.look()
    failed = step(world, "finetune")
    assert (failed.state, failed.failures) == (StepState.FAILED, 1)
    assert failed.last_failure and failed.last_failure.job_name == name


def test_a_job_whose_pods_still_end_stays() -> None:
    world = World(manifest(jobHistoryLimit=0, ttlSecondsAfterFinished=0))
    world.look()
    name = open_jobs(world)[0]
    world.start(name)
    world.succeed(name, alive=True)
    assert deleted(world.look()) == []
    world.settle(name)
    assert deleted(world.look()) == [name]


def test_the_limit_counts_each_step_for_itself() -> None:
    world = World(manifest(jobHistoryLimit=1))
    for _ in range(5):
        finish(world)
    assert len(world.jobs) == 8 and world.look().actions == ()


ended = st.none() | st.integers(0, 1000).map(lambda ago: PAST - timedelta(seconds=ago))
jobs_of_a_step = st.lists(
    st.fixed_dictionaries(
        {
            "attempt": st.integers(1, 12),
            "state": st.sampled_from(JobState),
            "alive": st.booleans(),
            "deleting": st.booleans(),
            "ended": ended,
            "fingerprint": st.sampled_from([MARK, MARK, MARK, "0" * 32]),
        }
    ),
    unique_by=lambda job: job["attempt"],
)


@given(
    jobs=jobs_of_a_step,
    attempt=st.integers(0, 12),
    state=st.sampled_from(StepState),
    limit=st.integers(0, 5),
    ttl=st.integers(0, 1000),
)
def test_which_jobs_go(jobs: list[dict[str, Any]], attempt: int, state: StepState, limit: int, ttl: int) -> None:
    def named(job: dict[str, Any]) -> ObservedJob:
        return ObservedJob(f"prepare-{job['attempt']}", "prepare", **job)

    found = {job.name: job for job in map(named, jobs)}
    a_step = Step(
        name="prepare",
        phase=Phase.PREPARE,
        state=state,
        attempt=attempt,
        job_name=f"prepare-{attempt}" if attempt else None,
        fingerprint=MARK,
    )
    retention = Retention(limit, timedelta(seconds=ttl))
    when = {expiry.job: expiry.when for expiry in expiries({"prepare": a_step}, found, retention, PAST)}
    for name in when:
        job = found[name]
        assert not job.live and not job.deleting and job.fingerprint == MARK
        assert state is StepState.SUCCEEDED or job.attempt <= attempt, "its end is not told yet"
        assert not (state.active and name == a_step.job_name)
        assert when[name] == PAST or (job.ended and when[name] == job.ended + timedelta(seconds=ttl))
    candidates = [
        job
        for name, job in found.items()
        if not job.live
        and not job.deleting
        and job.fingerprint == MARK
        and (
            state is StepState.SUCCEEDED or (job.attempt <= attempt and not (state.active and name == a_step.job_name))
        )
    ]
    newest = sorted(candidates, key=lambda job: job.attempt)[-limit:] if limit else []
    for job in candidates:
        if job not in newest:
            assert when[job.name] == PAST, f"{limit} newer ones stay"
        elif job.ended:
            assert when[job.name] == job.ended + timedelta(seconds=ttl)
        else:
            assert job.name not in when, "nobody knows when it ended"
