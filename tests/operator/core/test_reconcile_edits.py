"""What the reconciler decides when the user edits, suspends or retries, and when the operator comes and goes."""

import importlib
import json
from dataclasses import replace
from typing import Any

import pytest
from jobs_world import World, manifest, student
from looks import FINETUNED, PREPARED, at, condition, created, deleted, finish, open_jobs, states, step, told
from tests.support.matchers import has_condition

from compression_operator.api.run import RETRY_ANNOTATION, SOURCES_ANNOTATION
from compression_operator.api.status import RunPhase, StepState
from compression_operator.core.names import job_name
from compression_operator.core.reconcile import reconcile
from compression_pipeline.config import ENGINES, ExitClass


@pytest.fixture
def world() -> World:
    return World()


# -- the user --------------------------------------------------------------------------------------------------------


def test_a_suspended_run_stops_its_jobs_and_goes_on_later(world: World) -> None:
    at(world, *FINETUNED)
    names = open_jobs(world)
    world.edit(suspend=True)
    decision = world.look()
    assert deleted(decision) == names
    assert told(decision) == ["RunSuspended"]
    assert world.status.phase is RunPhase.SUSPENDED
    assert condition(world, "Suspended").message.endswith("2 jobs write a checkpoint and will end")
    assert has_condition(world, "Ready", "False") and has_condition(world, "Reconciling", "False")
    world.settle(names[0])
    world.pass_time(5000)
    world.look()
    assert condition(world, "Suspended").message.endswith("1 job writes a checkpoint and will end")
    world.edit(suspend=False)
    assert created(world.look()) == ["prune-width"]
    world.settle(names[1])
    decision = world.look()
    assert created(decision) == ["prune-depth"]
    assert (step(world, "prune-depth").attempt, step(world, "prune-depth").failures) == (2, 0)


def test_what_was_done_before_the_job_stopped_is_kept(world: World) -> None:
    at(world, *PREPARED)
    world.edit(suspend=True)
    world.look()
    world.succeed(open_jobs(world)[0])
    world.look()
    assert states(world)["finetune"] == "Succeeded"


def test_an_edit_runs_again_just_what_depends_on_it(world: World) -> None:
    world.drive()
    before = {step.name: step.job_name for step in world.status.steps}
    world.edit(distill={"steps": 101})
    decision = world.look()
    assert created(decision) == ["distill-width", "distill-depth"]
    assert told(decision).count("StepOutdated") == 4
    assert world.status.completion_time is None
    figures = world.status.students[0]
    assert figures.parameters and figures.artifact is None and figures.validation_loss.distilled is None
    world.drive()
    after = {step.name: step.job_name for step in world.status.steps}
    assert {name for name in after if after[name] != before[name]} == {
        "distill-width",
        "distill-depth",
        "export-width",
        "export-depth",
    }
    assert step(world, "distill-width").attempt == 2


def test_a_job_of_an_outdated_step_is_gone_before_the_new_one_starts(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    world.edit(finetune={"steps": 300})
    decision = world.look()
    assert (deleted(decision), created(decision)) == ([name], [])
    world.look()
    assert step(world, "finetune").message == f"waits for job {name} to end"
    world.vanish(name)
    assert created(world.look()) == ["finetune"]


def test_no_name_comes_twice_though_an_edit_is_taken_back(world: World) -> None:
    at(world, *PREPARED)
    for steps in (300, 200, 300, 200):
        for name in open_jobs(world):
            world.vanish(name)
        world.catch_up()
        world.edit(finetune={"steps": steps})
        world.look()
        world.look()
    assert step(world, "finetune").attempt == 5
    assert len([name for name in world.names if "finetune" in name]) == 5


def test_an_edit_of_what_shapes_nothing_leaves_jobs_alone(world: World) -> None:
    at(world, *FINETUNED)
    world.edit(distill={"steps": 999})
    assert world.look().actions == ()
    assert world.status.observed_generation == 2


def test_students_come_and_go(world: World) -> None:
    at(world, *FINETUNED)
    names = open_jobs(world)
    world.edit(students=[student("depth", dropLayers=[3]), student("new", hiddenSize=64)])
    decision = world.look()
    assert deleted(decision) == [names[0]]
    assert [one.name for one in world.status.students] == ["depth", "new"]
    assert "prune-width" not in states(world)
    assert states(world)["prune-depth"] == "Running"
    assert created(decision) == [], "the one that goes still takes its slot"
    world.vanish(names[0])
    assert created(world.look()) == ["prune-new"]
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_an_edit_forgives_what_failed(world: World) -> None:
    """The cure of most mistakes (memory, micro-batch size, image) is in no fingerprint."""
    at(world, *PREPARED)
    world.fail(open_jobs(world)[0], ExitClass.USER_ERROR)
    world.look()
    world.edit(finetune={"steps": 200, "microBatchSize": 2})
    assert created(world.look()) == ["finetune"]
    assert (step(world, "finetune").attempt, step(world, "finetune").failures) == (2, 0)


def test_a_retry_is_asked_for_by_annotation(world: World) -> None:
    at(world, *FINETUNED)
    for name in open_jobs(world):
        world.fail(name, ExitClass.USER_ERROR)
    world.look()
    world.annotate(RETRY_ANNOTATION, "one")
    assert created(world.look()) == ["prune-width", "prune-depth"]
    assert world.status.handled_retry == "one"
    for name in open_jobs(world):
        world.start(name)
        world.fail(name, ExitClass.USER_ERROR)
    world.look()
    assert world.look().actions == (), "a token counts once"
    world.annotate(RETRY_ANNOTATION, "two")
    assert created(world.look()) == ["prune-width", "prune-depth"]
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_an_empty_retry_token_asks_for_nothing(world: World) -> None:
    """`kubectl annotate crun x modelcompression.io/retry=`: it forgave every failure, at every look."""
    at(world, *PREPARED)
    world.fail(open_jobs(world)[0], ExitClass.USER_ERROR)
    world.look()
    world.annotate(RETRY_ANNOTATION, "")
    assert world.look().actions == ()
    world.annotate(RETRY_ANNOTATION, "one")
    assert created(world.look()) == ["finetune"]
    world.annotate(RETRY_ANNOTATION, "")
    world.start(open_jobs(world)[0])
    world.fail(open_jobs(world)[0], ExitClass.USER_ERROR)
    assert [created(world.look()) for _ in range(3)] == [[], [], []]


def test_a_retry_of_a_run_that_succeeded_does_nothing(world: World) -> None:
    world.drive()
    world.annotate(RETRY_ANNOTATION, "one")
    decision = world.look()
    assert decision.actions == decision.events == ()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_a_student_that_cannot_be_made_stops_the_run_before_any_gpu_is_asked_for() -> None:
    students = [student("good", hiddenSize=128), student("wide", hiddenSize=512, dropLayers=[9])]
    world = World(manifest(students=students))
    at(world, *PREPARED)
    assert open_jobs(world) == []
    assert world.status.phase is RunPhase.FAILED
    assert has_condition(
        world,
        "Stalled",
        "True",
        reason="InvalidStudent",
        message="spec.students[1].prune.hiddenSize: 512 is more than the teacher's 256; pruning only makes it smaller; "
        "spec.students[1].prune.dropLayers: the teacher has layers 1 to 4; there is no layer 9",
    )
    assert step(world, "prune-wide").message == condition(world, "Stalled").message
    assert states(world)["prune-good"] == "Skipped"
    assert step(world, "finetune").message == "not started because wide cannot be made of this teacher"
    world.edit(students=[students[0], student("wide", hiddenSize=192)])
    assert created(world.look()) == ["finetune"]
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


STATES: list[dict[str, Any]] = [{"type": "HiddenStates", "layerMap": [{"student": 2, "teacher": 9}]}]


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (True, "layerMap[0].teacher: the teacher has layers 1 to 4; there is no layer 9"),
        (False, "type: HiddenStates compares outputs of layers here, which the engine Megatron does not give; use "),
    ],
)
def test_a_loss_that_cannot_be_computed_stops_the_run_before_any_gpu_is_asked_for(
    gives: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "Megatron", replace(ENGINES["Megatron"], gives_states=gives))
    students = [student("narrow", hiddenSize=128, distill={"steps": 100, "losses": STATES})]
    world = World(manifest(students=students))
    at(world, *PREPARED)
    assert open_jobs(world) == []
    assert condition(world, "Stalled").message.startswith(f"spec.students[0].distill.losses[0].{said}")


def test_jobs_go_on_while_a_student_is_added_that_cannot_be_made(world: World) -> None:
    at(world, *PREPARED)
    good = [one.to_json() for one in world.run.spec.students]
    world.edit(students=[*good, student("wide", hiddenSize=512)])
    decision = world.look()
    assert decision.actions == ()
    assert world.status.phase is RunPhase.FINETUNING
    finish(world)
    assert world.status.phase is RunPhase.FAILED
    world.edit(students=good)
    assert created(world.look()) == ["prune-width", "prune-depth"]


# -- the sources -----------------------------------------------------------------------------------------------------


def test_local_files_that_were_only_touched_run_prepare_alone(world: World) -> None:
    world.drive()
    before = world.status.students
    world.annotate(SOURCES_ANNOTATION, "touched")
    world.edit()
    assert created(world.look()) == ["prepare"]
    assert states(world)["export-width"] == "Succeeded", "until its inputs turn out to be others"
    assert world.status.phase is RunPhase.PENDING or world.status.phase is RunPhase.PREPARING
    world.drive()
    assert len(world.names) == 9
    assert world.status.students == before
    assert world.status.phase is RunPhase.SUCCEEDED


def test_other_content_runs_everything_again(world: World) -> None:
    at(world, *FINETUNED)
    names = open_jobs(world)
    world.edit(dataset={"source": "hf://owner/other", "sequenceLength": 64})
    decision = world.look()
    assert deleted(decision)[1:] == names, "the jobs under way are for another text"
    assert world.status.resolved is None
    world.drive()
    assert len(world.names) == 2 + 2 + 8
    assert world.status.phase is RunPhase.SUCCEEDED


# -- the operator ----------------------------------------------------------------------------------------------------


def test_a_finished_run_is_left_alone_by_another_version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.drive()
    before = world.status
    monkeypatch.setattr(importlib.import_module("compression_pipeline.config.fingerprint"), "SCHEMA_VERSION", 0)
    with monkeypatch.context() as newer:
        newer.setattr("compression_operator.core.reconcile.plan_of", lambda *_, **__: pytest.fail("is planned again"))
        assert world.look().actions == ()
    assert world.status == before
    world.edit(maxParallelJobs=5)
    assert created(world.look()) == ["prepare"], "an edit plans it anew"


def test_a_run_under_way_goes_on_with_what_was_planned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    at(world, *FINETUNED)
    before = {step.name: step.fingerprint for step in world.status.steps}
    monkeypatch.setattr(importlib.import_module("compression_pipeline.config.fingerprint"), "SCHEMA_VERSION", 0)
    assert world.look().actions == ()
    world.drive()
    assert {step.name: step.fingerprint for step in world.status.steps} == before
    assert len(world.names) == 8


def test_whatever_was_not_recorded_is_found(world: World) -> None:
    at(world, *FINETUNED)
    finish(world)
    before = states(world)
    world.lose_status()
    world.look()
    assert states(world) == before
    assert len(world.names) == 6
    world.drive()
    assert len(world.names) == 8
    assert world.status.students[0].parameters


def test_an_operator_that_dies_between_a_job_and_the_status_finds_the_job(world: World) -> None:
    world.look(crash_after=1)
    assert world.status.steps == []
    assert world.look().actions == ()
    assert states(world)["prepare"] == "Starting"


def test_a_listing_that_lags_behind_makes_no_second_job(world: World) -> None:
    assert world.look().look_again_seconds == 1, "if no controller takes the job up, nothing tells of it"
    name = open_jobs(world)[0]
    world.start(name)
    for _ in range(24):
        assert created(world.look(stale=frozenset({name}))) == []
        assert step(world, "prepare").state is StepState.STARTING, "as it was shown last"
        world.pass_time(1)
    assert open_jobs(world) == [name]
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED and step(world, "prepare").attempt == 1


def test_an_edit_right_after_a_job_was_made_stops_it_all_the_same(world: World) -> None:
    world.look()
    name = open_jobs(world)[0]
    world.edit(teacher={"model": "hf://owner/other"})
    decision = world.look(stale=frozenset({name}))
    assert (deleted(decision), created(decision)) == ([name], [])
    world.vanish(name)
    assert created(world.look()) == ["prepare"]


def test_jobs_of_others_are_never_touched(world: World) -> None:
    world.foreign.add("somebody-elses")
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED


def test_live_jobs_that_no_step_names_are_stopped(world: World) -> None:
    at(world, *PREPARED)
    truth = world.jobs[open_jobs(world)[0]]
    stray = replace(truth.seen, name="stray", attempt=0)
    removed = replace(truth.seen, name="removed", step="prune-gone")
    decision = reconcile(world.run, [truth.seen, stray, removed], world.now)
    assert deleted(decision) == ["stray", "removed"]
    world.drive()
    decision = reconcile(world.run, [removed], world.now)
    assert deleted(decision) == ["removed"], "also of a run that has finished"


def test_a_clock_that_was_ahead_holds_nothing_back(world: World) -> None:
    at(world, *PREPARED)
    world.fail(open_jobs(world)[0], None)
    world.look()
    world.jump(-100_000)
    assert created(world.look()) == ["finetune"]


def test_a_listing_may_name_a_job_twice(world: World) -> None:
    at(world, *PREPARED)
    name = open_jobs(world)[0]
    older = world.jobs[name].seen
    world.fail(name, ExitClass.USER_ERROR)
    for listing in ([older, world.jobs[name].seen], [world.jobs[name].seen, older]):
        decision = reconcile(world.run, listing, world.now)
        found = decision.status.step("finetune")
        assert found and found.state is StepState.FAILED


def test_times_of_transition_move_only_with_the_status(world: World) -> None:
    world.look()
    began = condition(world, "Progressing").last_transition_time
    world.pass_time(50)
    finish(world)
    assert condition(world, "Progressing").message.endswith("under way: finetune")
    assert condition(world, "Progressing").last_transition_time == began
    world.pass_time(50)
    world.drive()
    assert condition(world, "Progressing").last_transition_time > began


def test_a_status_fits_an_object_of_the_api_server() -> None:
    """32 students, every message as long as it may be."""
    students = [student(f"student-{i:02}-{'x' * 29}", hiddenSize=64 * (i % 3 + 1), divisor=64) for i in range(32)]
    world = World(manifest(students=students, maxParallelJobs=32))
    at(world, *FINETUNED)
    for name in open_jobs(world):
        world.update(name, message="y" * 5000)
        world.fail(name, None)
    world.look()
    assert max(len(step.message) for step in world.status.steps) <= 1100
    assert len(json.dumps(world.status.to_json())) < 500_000


def test_names_of_jobs_are_those_promised(world: World) -> None:
    at(world, *FINETUNED)
    for name in open_jobs(world):
        job = world.jobs[name].job
        assert name == job_name("demo", job.student, job.phase, job.fingerprint, 1)
