"""What the reconciler decides after attempts that fail, are interrupted or vanish."""

from datetime import timedelta

import pytest
from jobs_world import World, manifest
from looks import FINETUNED, PREPARED, at, condition, created, deleted, open_jobs, states, step, told
from tests.support.matchers import has_condition

from compression_operator.api.run import RETRY_ANNOTATION
from compression_operator.api.status import RunPhase, StepState
from compression_pipeline.config import ExitClass


@pytest.fixture
def world() -> World:
    return World()


def test_a_users_mistake_is_not_tried_again(world: World) -> None:
    at(world, *PREPARED)
    world.fail(open_jobs(world)[0], ExitClass.USER_ERROR)
    decision = world.look()
    assert created(decision) == []
    failed = step(world, "finetune")
    assert failed.state is StepState.FAILED
    assert failed.last_failure and failed.last_failure.exit_class == "UserError"
    assert states(world)["export-depth"] == "Skipped"
    assert world.status.phase is RunPhase.FAILED
    assert told(decision) == ["StepFailed", "RunFailed"]
    assert has_condition(world, "Stalled", "True", reason="FinetuneFailed")
    assert condition(world, "Stalled").message.startswith(f"finetune: UserError of {step(world, 'finetune').job_name}")
    world.pass_time(100_000)
    assert world.look().actions == ()


@pytest.mark.parametrize("how", [ExitClass.TRANSIENT, None])
def test_a_passing_fault_is_tried_again_after_growing_pauses(how: ExitClass | None) -> None:
    world = World(manifest(phases={"finetune": {"retryLimit": 2}}))
    at(world, *PREPARED)
    for attempt, pause in ((1, 10), (2, 20)):
        world.fail(open_jobs(world)[0], how)
        ended = world.now
        world.pass_time(3)
        decision = world.look()
        waiting = step(world, "finetune")
        assert (waiting.state, waiting.attempt, waiting.failures) == (StepState.PENDING, attempt, attempt)
        assert waiting.retry_time == ended + timedelta(seconds=pause)
        assert decision.look_again_seconds == pause - 3
        assert "StepRetrying" in told(decision)
        assert has_condition(world, "Degraded", "True")
        world.pass_time(pause - 4)
        assert created(world.look()) == []
        world.pass_time(1)
        assert created(world.look()) == ["finetune"]
        world.start(open_jobs(world)[0])
    world.fail(open_jobs(world)[0], how)
    world.look()
    assert step(world, "finetune").state is StepState.FAILED
    assert step(world, "finetune").message.endswith("(passing fault 3, retryLimit is 2)")


def test_pauses_have_an_end() -> None:
    world = World(manifest(phases={"prepare": {"retryLimit": 100}}))
    for _ in range(50):
        world.pass_time(world.look().look_again_seconds or 0)
        world.look()
        world.start(open_jobs(world)[0])
        world.fail(open_jobs(world)[0], None)
    assert world.look().look_again_seconds == 600


def test_an_interruption_is_resumed_and_does_not_count(world: World) -> None:
    world = World(manifest(phases={"finetune": {"retryLimit": 0}}))
    at(world, *PREPARED)
    world.pass_time(60)
    world.fail(open_jobs(world)[0], ExitClass.INTERRUPTED)
    decision = world.look()
    assert created(decision) == ["finetune"]
    assert "StepInterrupted" in told(decision)
    assert (step(world, "finetune").attempt, step(world, "finetune").failures) == (2, 0)


def test_an_interruption_tells_what_was_done_to_the_job_and_where_it_stopped(world: World) -> None:
    """Whichever the operator hears of first: a pod's deletion, or the words with which its container ends for it."""
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.fail(name, ExitClass.INTERRUPTED)
    world.update(name, interrupted=True, message="pod a was deleted")
    world.look()
    failure = step(world, "finetune").last_failure
    assert failure and failure.message == f"interrupted: pod a was deleted; Interrupted of {name}"


def test_interruptions_keep_a_pace(world: World) -> None:
    at(world, *PREPARED)
    world.pass_time(1)
    world.fail(open_jobs(world)[0], ExitClass.INTERRUPTED)
    decision = world.look()
    assert created(decision) == []
    assert decision.look_again_seconds == 9
    world.pass_time(9)
    assert created(world.look()) == ["finetune"]


def test_a_job_that_lost_a_pod_is_stopped_before_the_next_starts(world: World) -> None:
    at(world, *PREPARED)
    world.pass_time(60)
    name = open_jobs(world)[0]
    world.lose_pod(name)
    assert deleted(world.look()) == [name]
    assert world.look().blocked == ("finetune",)
    assert step(world, "finetune").message == f"waits for job {name} to end"
    world.vanish(name)
    assert created(world.look()) == ["finetune"]


def test_the_next_attempt_waits_until_no_pod_of_the_last_one_lives(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.fail(name, ExitClass.TRANSIENT, alive=True)
    assert deleted(world.look()) == [name]
    world.pass_time(100)
    assert created(world.look()) == []
    world.settle(name)
    assert created(world.look()) == ["finetune"]


def test_a_job_on_a_lost_node_is_not_waited_for(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.pass_time(60)
    world.lose_node(name)
    decision = world.look()
    assert (created(decision), deleted(decision)) == (["finetune"], [])
    assert (step(world, "finetune").attempt, step(world, "finetune").failures) == (2, 0)


def test_a_mistake_stays_one_though_a_pod_was_lost(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.lose_pod(name)
    world.fail(name, ExitClass.USER_ERROR)
    world.look()
    assert step(world, "finetune").state is StepState.FAILED


def test_a_job_deleted_by_hand_is_asked_for_again(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.vanish(name)
    decision = world.look()
    assert created(decision) == ["finetune"]
    assert told(decision) == ["StepInterrupted", "JobCreated"]
    assert (
        decision.events[0].message == "finetune, attempt 1: interrupted: the job was deleted, and not by the operator"
    )
    assert (step(world, "finetune").attempt, step(world, "finetune").failures) == (2, 0)
    assert len(open_jobs(world)) == 1 and name not in open_jobs(world)
    assert told(world.look()) == []
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_a_result_that_was_lost_is_fetched_by_another_attempt(world: World) -> None:
    at(world, *PREPARED)
    world.succeed(open_jobs(world)[0], said=False)
    world.look()
    assert step(world, "finetune").message.startswith("tries again at 00:00:10 UTC, after: it ended without a result")
    world.drive()
    assert step(world, "finetune").cached


def test_one_student_that_fails_does_not_stop_the_other(world: World) -> None:
    at(world, *FINETUNED)
    world.fail(open_jobs(world)[0], ExitClass.USER_ERROR)
    world.look()
    assert states(world) | {"prune-depth": "Running"} == states(world)
    assert states(world)["prune-width"] == "Failed"
    assert step(world, "distill-width").message == "not started because prune-width did not succeed"
    assert world.status.phase is RunPhase.PRUNING
    assert has_condition(world, "Degraded", reason="PruneFailed")
    world.drive()
    assert world.status.phase is RunPhase.FAILED
    assert states(world)["export-depth"] == "Succeeded"
    assert states(world)["export-width"] == "Skipped"


def test_a_sidecar_holds_no_slot_for_ever() -> None:
    """The pipeline has ended well; its pod has not, and never will."""
    world = World(manifest(maxParallelJobs=1))
    world.look()
    name = open_jobs(world)[0]
    world.start(name)
    world.succeed(name, alive=True)
    decision = world.look()
    assert (created(decision), deleted(decision), decision.look_again_seconds) == ([], [], 60)
    assert states(world)["prepare"] == "Succeeded"
    world.pass_time(60)
    decision = world.look()
    assert (created(decision), deleted(decision)) == (["finetune"], [name])
    world.vanish(name)
    for _ in range(20):
        for one in open_jobs(world):
            world.start(one)
            world.succeed(one, alive=True)
        world.look()
        world.pass_time(60)
        for one in deleted(world.look()):
            world.vanish(one)
    assert world.status.phase is RunPhase.SUCCEEDED
    assert not any(truth.live for truth in world.jobs.values()), "nor does the last one live on"


def test_a_job_that_was_just_made_is_not_forgotten_for_an_older_one_that_is_done(world: World) -> None:
    at(world, *PREPARED)
    dataset = world.run.spec.dataset.to_json()
    world.edit(dataset={**dataset, "textColumn": "body"})
    world.look()
    newest = step(world, "prepare").job_name
    assert newest and newest.endswith("-2")
    world.edit(dataset=dataset)
    decision = world.look(stale=frozenset(world.jobs))
    assert newest in deleted(decision), "it was made, though the listing lags"
    assert states(world)["prepare"] == "Succeeded"
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


# -- what was made is gone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", ["prepare", "finetune"])
def test_what_made_a_missing_input_runs_again_by_itself(world: World, maker: str) -> None:
    at(world, *FINETUNED)
    before = {one.name: one.fingerprint for one in world.status.steps}
    artifact = step(world, maker).artifact
    assert artifact
    world.lose(artifact)
    for name in open_jobs(world):
        world.start(name)
        world.miss(name, [artifact])
    decision = world.look()
    assert created(decision) == [maker]
    assert told(decision).count("ArtifactMissing") == 1
    waiting = step(world, "prune-width")
    assert (waiting.state, waiting.failures, waiting.remakes) == (StepState.PENDING, 0, 1)
    assert waiting.message == f"waits for {maker}"
    assert waiting.retry_time and waiting.retry_time > world.now, "what removes it may do so again"
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED
    assert {one.name: one.fingerprint for one in world.status.steps} == before, "nothing else is made anew"
    assert artifact in world.published
    assert world.made[maker] == 2


@pytest.mark.parametrize("students", [1, 2])
def test_what_is_removed_each_time_is_not_made_for_ever(world: World, students: int) -> None:
    world.edit(students=[one.to_json() for one in world.run.spec.students[:students]])
    at(world, *FINETUNED)
    artifact = step(world, "finetune").artifact
    assert artifact
    for _ in range(40):
        for name in open_jobs(world):
            world.start(name)
            if "finetune" in name:
                world.succeed(name)
                world.lose(artifact)
            else:
                world.miss(name, [artifact])
        world.pass_time(700)
        world.look()
    failed = step(world, "prune-width")
    assert failed.state is StepState.FAILED
    assert "made again 3 times, and gone or changed again: look for what removes or changes artifacts" in failed.message
    assert world.made["finetune"] == 1 + 3, "nor once more for a step that has failed for good"
    assert world.status.phase is RunPhase.FAILED
    world.annotate(RETRY_ANNOTATION, "again")
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_an_artifact_that_no_step_makes_is_a_passing_fault(world: World) -> None:
    at(world, *FINETUNED)
    name = open_jobs(world)[0]
    world.start(name)
    world.miss(name, ["finetune-of-nobody"])
    world.faults["prune-width"] += 1
    world.look()
    assert step(world, "prune-width").failures == 1


def test_a_job_that_makes_an_artifact_anew_counts_though_the_status_that_told_of_it_was_never_written(
    world: World,
) -> None:
    """A second look at the same jobs changed the status: the first one overlooked the job."""
    at(world, *PREPARED)
    artifact = step(world, "prepare").artifact
    assert artifact
    world.lose(artifact)
    (finetune,) = open_jobs(world)
    world.start(finetune)
    world.succeed(finetune)
    assert created(world.look(crash_after=1)) == ["prepare"]
    world.edit(suspend=True)
    assert len(deleted(world.look())) == 1  # its own check looks twice
    assert (step(world, "prepare").state, step(world, "prepare").attempt) == (StepState.PENDING, 2)
