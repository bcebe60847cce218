"""What the reconciler decides while a run goes on: phases, figures, deadlines."""

import pytest
from jobs_results import loss, number
from jobs_world import START, World, manifest, student
from looks import FINETUNED, PREPARED, at, condition, created, deleted, finish, open_jobs, states, step, told
from tests.support.matchers import has_condition

from compression_operator.api.phase_settings import PhaseSettingsByPhase
from compression_operator.api.status import RunPhase, StepState
from compression_operator.core.conditions import KINDS
from compression_operator.core.jobs import Decision
from compression_operator.core.reconcile import reconcile
from compression_operator.core.steps import seconds
from compression_pipeline.config import ExitClass


@pytest.fixture
def world() -> World:
    return World()


# -- a run that goes well --------------------------------------------------------------------------------------------


def test_a_run_goes_from_phase_to_phase(world: World) -> None:
    phases = []
    assert created(world.look()) == ["prepare"]
    for _ in range(5):
        for name in open_jobs(world):
            world.start(name)
        world.look()
        phases.append(world.status.phase.value)
        finish(world)
    assert phases == ["Preparing", "Finetuning", "Pruning", "Distilling", "Exporting"]
    assert world.status.phase is RunPhase.SUCCEEDED
    assert has_condition(world, "Ready", "True", message="2 students are exported")
    assert has_condition(world, "Reconciling", "False") and has_condition(world, "Stalled", "False")
    assert world.status.completion_time is not None
    assert len(world.names) == 8


def test_what_ends_starts_the_next_step_in_the_same_look(world: World) -> None:
    world.look()
    name = open_jobs(world)[0]
    world.start(name)
    world.succeed(name)
    decision = world.look()
    assert created(decision) == ["finetune"]
    assert told(decision) == ["StepSucceeded", "JobCreated"]
    assert world.status.resolved and world.status.teacher
    assert world.status.teacher.parameter_count == 2_873_600


def test_figures_of_the_students(world: World) -> None:
    world.drive()
    marks = {step.name: step.fingerprint or "" for step in world.status.steps}
    width = world.status.student("width")
    assert width
    assert width.parameters == number(marks["prune-width"])
    assert width.compression_ratio == 0.5
    assert width.validation_loss.to_json() == {
        "teacher": loss(marks["finetune"]),
        "correctedTeacher": loss(marks["finetune"], 1),
        "pruned": loss(marks["distill-width"], 1),
        "distilled": loss(marks["distill-width"], 2),
    }
    assert width.tokens_per_second is None, "it wasn't finite"
    assert width.artifact == f"export-{marks['export-width']}"
    assert width.sample and len(width.sample) == 1000


def test_a_new_student_is_told_what_is_known_of_the_teacher(world: World) -> None:
    world.drive()
    world.edit(students=[student("new", hiddenSize=64)])
    world.look()
    assert world.status.teacher
    [new] = world.status.students
    assert new.planned is not None
    assert [new.model_copy(update={"planned": None}).to_json()] == [
        {
            "name": "new",
            "validationLoss": {
                "teacher": world.status.teacher.validation_loss,
                "correctedTeacher": world.status.teacher.corrected_validation_loss,
            },
        }
    ]


def test_no_more_jobs_at_once_than_allowed() -> None:
    students = [student(f"s{i}", hiddenSize=64 * (i + 1)) for i in range(4)]
    world = World(manifest(students=students, maxParallelJobs=3))
    at(world, *FINETUNED)
    assert len(open_jobs(world)) == 3
    assert step(world, "prune-s3").message == "waits for a free slot (maxParallelJobs is 3)"
    world.succeed(open_jobs(world)[1])
    assert created(world.look()) == ["prune-s3"]
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_equal_students_are_made_once(world: World) -> None:
    world = World(manifest(students=[student("one", hiddenSize=64), student("two", hiddenSize=64)]))
    at(world, *FINETUNED)
    assert [world.jobs[name].job.step for name in open_jobs(world)] == ["prune-one"]
    assert step(world, "prune-two").message == "waits for prune-one, which makes the same"
    assert world.look().blocked == ("prune-two",)
    world.drive()
    cached = {step.name: step.cached for step in world.status.steps if step.student}
    assert {name for name, was in cached.items() if was} == {"prune-two", "distill-two", "export-two"}


def test_a_pending_job_is_not_called_running(world: World) -> None:
    world.look()
    name = open_jobs(world)[0]
    world.update(name, message="0/3 nodes have nvidia.com/gpu free")
    world.look()
    assert step(world, "prepare").state is StepState.STARTING
    assert step(world, "prepare").message == "0/3 nodes have nvidia.com/gpu free"
    assert has_condition(world, "Progressing", says="0/3 nodes")
    assert step(world, "prepare").start_time is None
    world.start(name)
    world.beat(name)
    world.look()
    running = step(world, "prepare")
    assert (running.state, running.start_time) == (StepState.RUNNING, START)
    assert running.progress and running.progress.loss == 3.5


# -- deadlines -------------------------------------------------------------------------------------------------------


def test_running_time_has_an_end() -> None:
    world = World(manifest(phases={"finetune": {"activeDeadlineSeconds": 100, "retryLimit": 0}}))
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    assert world.look().look_again_seconds == 100
    world.pass_time(99)
    world.beat(name)
    assert world.look().look_again_seconds == 1
    world.pass_time(1)
    world.faults["finetune"] += 1
    assert deleted(world.look()) == [name]
    assert step(world, "finetune").message == "the job ran longer than activeDeadlineSeconds (100); it was stopped"
    assert world.status.phase is RunPhase.FAILED


def test_waiting_is_no_running_time() -> None:
    world = World(manifest(phases={"prepare": {"activeDeadlineSeconds": 100, "progressDeadlineSeconds": 60}}))
    world.look()
    world.pass_time(1000)
    assert deleted(world.look()) == []
    name = open_jobs(world)[0]
    world.start(name)
    world.update(name, suspended_seconds=500.0)
    world.pass_time(500)
    world.beat(name)
    assert deleted(world.look()) == []


def test_a_job_that_hangs_is_stopped_and_tried_again(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.pass_time(1799)
    world.look()
    assert states(world)["finetune"] == "Running"
    world.pass_time(1)
    assert deleted(world.look()) == [name]
    hung = step(world, "finetune")
    assert (hung.state, hung.failures) == (StepState.PENDING, 1)
    assert "no sign of life for progressDeadlineSeconds (1800)" in hung.message
    # It gets the grace period, and counts but once.
    world.fail(name, ExitClass.INTERRUPTED, alive=True)
    world.pass_time(60)
    assert created(world.look()) == []
    world.vanish(name)
    assert created(world.look()) == ["finetune"]
    assert step(world, "finetune").failures == 1


def test_everything_that_is_permanent_ends_in_failure() -> None:
    world = World(manifest(phases={phase: {"retryLimit": 1} for phase in PhaseSettingsByPhase.model_fields}))
    for _ in range(200):
        decision = world.look()
        for name in open_jobs(world):
            world.start(name)
            world.fail(name, ExitClass.TRANSIENT)
        if world.status.phase is RunPhase.FAILED:
            break
        world.pass_time(decision.look_again_seconds or 1)
    assert world.status.phase is RunPhase.FAILED
    assert len(world.names) == 2


@pytest.mark.parametrize("left", [[], ["Ready"], ["Ready", "Progressing", "Degraded", "Suspended", "Stalled"]])
@pytest.mark.parametrize("ends", [RunPhase.SUCCEEDED, RunPhase.FAILED])
def test_conditions_that_somebody_removed_from_a_finished_run_come_back(
    world: World, left: list[str], ends: RunPhase
) -> None:
    world.look()
    if ends is RunPhase.FAILED:
        (name,) = open_jobs(world)
        world.fail(name, ExitClass.USER_ERROR)
    world.drive()
    whole = world.status
    assert whole.phase is ends and [c.type for c in whole.conditions] == list(KINDS)
    removed = whole.model_copy(update={"conditions": [c for c in whole.conditions if c.type in left]})
    world.run = world.run.model_copy(update={"status": removed})
    decision = world.look()
    assert decision.events == () and len(world.status.conditions) == len(KINDS)
    for before in whole.conditions:
        now = condition(world, before.type)
        assert (now.status, now.reason, now.message) == (before.status, before.reason, before.message)
        assert now.last_transition_time == (before.last_transition_time if before.type in left else seconds(world.now))
    assert world.status.completion_time == whole.completion_time


# -- a run that is being deleted -------------------------------------------------------------------------------------


def going(world: World, *finalizers: str) -> Decision:
    """What is decided for the run once somebody has deleted it."""
    changes = {"deletion_timestamp": world.now, "finalizers": list(finalizers)}
    metadata = world.run.metadata.model_copy(update=changes)
    return reconcile(world.run.model_copy(update={"metadata": metadata}), world.listing(), world.now)


def test_a_run_that_a_finalizer_keeps_gives_its_gpus_back(world: World) -> None:
    at(world, *FINETUNED)
    running = open_jobs(world)
    decision = going(world, "example.com/mine")
    assert sorted(deleted(decision)) == sorted(running) and len(running) == 2
    assert created(decision) == told(decision) == [] and decision.status == world.status
    world.update(running[0], deleting=True)
    world.fail(running[1], ExitClass.TRANSIENT)
    assert going(world, "example.com/mine").actions == (), "ended jobs go with the run, and no attempt follows them"


def test_jobs_that_are_to_outlive_their_run_do(world: World) -> None:
    at(world, *FINETUNED)
    assert going(world, "orphan").actions == ()
