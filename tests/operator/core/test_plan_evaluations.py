"""Steps that evaluate models: their fingerprints, and who waits for them."""

from typing import Any

from jobs_world import World, manifest
from looks import condition, created, finish, open_jobs, states, step

from compression_operator.api.resolved import Resolved, ResolvedTasks
from compression_operator.api.run import RETRY_ANNOTATION, TASK_SOURCES_ANNOTATION
from compression_operator.api.status import RunPhase
from compression_operator.core.plan import Plan, plan
from compression_pipeline.config import DistillJob, ExitClass

EVALUATE = {"tasks": [{"name": "hellaswag"}]}


def resolved(key: str = "k" * 32) -> Resolved:
    source = {"source": "hf://owner/x", "revision": "abc", "digest": "d"}
    return Resolved.model_validate({"key": key, "teacher": source, "dataset": source})


DISCOVERED = {"prepare": resolved(), "tasks": ResolvedTasks(key="t" * 32, harness="0.4.13")}


def planned(**spec: Any) -> Plan:
    return plan(manifest(**spec).spec, discovered=DISCOVERED)


def marks(of: Plan) -> dict[str, str | None]:
    return {step.name: step.fingerprint for step in of.steps}


def changed(before: Plan, after: Plan) -> set[str]:
    old, new = marks(before), marks(after)
    assert old.keys() == new.keys()
    return {name for name in old if old[name] != new[name]}


def test_a_run_without_evaluate_is_planned_as_before() -> None:
    before, after = planned(), planned(evaluate=EVALUATE)
    added = {"tasks", "baseline", "baseline-corrected"}
    added |= {f"{phase}-{student}" for phase in ("evaluate", "report") for student in ("width", "depth")}
    assert marks(after).keys() - marks(before).keys() == added
    assert {name for name, mark in marks(before).items() if marks(after)[name] != mark} == set()


def test_no_edit_of_what_is_evaluated_makes_weights_anew() -> None:
    before = planned(evaluate=EVALUATE)
    reports = {"report-width", "report-depth"}
    scores = {"baseline", "baseline-corrected", "evaluate-width", "evaluate-depth", *reports}
    assert len({marks(before)[name] for name in scores}) == 6, "a score counts for one model"
    asked = changed(before, planned(evaluate={"tasks": [{"name": "hellaswag", "shots": 10}]}))
    assert asked == {"tasks", *scores}, "the step tasks checks what is asked"
    faster = changed(before, planned(evaluate={**EVALUATE, "batchSize": 2}))
    assert faster == scores, "the tasks are the same"
    rounded = changed(before, planned(evaluate=EVALUATE, export={"dtype": "float16"}))
    assert rounded == {"evaluate-width", "evaluate-depth", "export-width", "export-depth", *reports}
    found = {"prepare": resolved("k" * 32), "tasks": ResolvedTasks(key="u" * 32, harness="0.4.13")}
    other = plan(manifest(evaluate=EVALUATE).spec, discovered=found)
    assert changed(before, other) == scores, "other questions"
    touched = plan(manifest(evaluate=EVALUATE).spec, discovered=DISCOVERED, sources={TASK_SOURCES_ANNOTATION: "a"})
    assert changed(before, touched) == {"tasks"}, "files of tasks are not those of the teacher"
    on_cpu = planned(evaluate=EVALUATE, phases={"evaluate": {"gpusPerNode": 0}})
    assert changed(before, on_cpu) == scores, "another arithmetic"


def test_scores_in_the_type_of_the_export_are_none_of_when_all_were_in_bfloat16() -> None:
    before = {
        ("bfloat16", 1): "dd2660e6ee3887e05f985b56ad9e2976",
        ("float16", 1): "72e124850c7b429da521b12fca6e1910",
        ("float32", 1): "9b7d0e20add9ef4c0634f4f41196b6a3",
        ("float16", 0): "b5f7a496f1cd5c2e1a6563cd7b99f4a3",
    }
    stand = {
        (dtype, gpus): marks(
            planned(evaluate=EVALUATE, export={"dtype": dtype}, phases={"evaluate": {"gpusPerNode": gpus}})
        )["evaluate-width"]
        == mark
        for (dtype, gpus), mark in before.items()
    }
    assert stand == {("bfloat16", 1): True, ("float16", 1): False, ("float32", 1): False, ("float16", 0): True}


def test_a_failed_evaluation_keeps_no_student_from_being_exported() -> None:
    world = World(manifest(evaluate=EVALUATE))
    world.drive(failing={"evaluate-width"})
    assert world.status.phase is RunPhase.FAILED
    ended = {name: state for name, state in states(world).items() if state != "Succeeded"}
    assert ended == {"evaluate-width": "Failed", "report-width": "Skipped"}
    assert condition(world, "Ready").reason == "EvaluateFailed"
    assert condition(world, "Ready").message.startswith("evaluate-width: ")
    of_width, of_depth = world.status.students
    assert of_width.artifact == step(world, "export-width").artifact
    assert of_depth.artifact == step(world, "report-depth").artifact


def test_reports_are_made_without_the_scores_of_a_teacher_that_could_not_be_scored() -> None:
    world = World(manifest(evaluate=EVALUATE))
    world.drive(failing={"baseline"})
    assert {name for name, state in states(world).items() if state != "Succeeded"} == {"baseline"}
    assert condition(world, "Ready").reason == "BaselineFailed"
    without = {name: step(world, f"report-{name}").artifact for name in ("width", "depth")}
    assert {one.name: one.artifact for one in world.status.students} == without
    jobs = {truth.job.step: truth.job.config for truth in world.jobs.values()}
    assert (
        "baseline" not in jobs["report-width"].for_image() and "baselineCorrected" in jobs["report-width"].for_image()
    )
    world.annotate(RETRY_ANNOTATION, "once more")
    assert created(world.look()) == ["baseline"]
    assert step(world, "report-width").message == "waits for baseline"
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED
    assert {one.name: one.artifact != without[one.name] for one in world.status.students} == dict.fromkeys(
        without, True
    )


def test_the_folder_to_publish_is_the_exports_while_scores_are_made_anew() -> None:
    world = World(manifest(evaluate=EVALUATE))
    world.drive()
    made = {name: step(world, f"export-{name}").artifact for name in ("width", "depth")}
    world.edit(evaluate={**EVALUATE, "batchSize": 2})
    world.look()
    assert {one.name: one.artifact for one in world.status.students} == made
    world.drive()
    assert {one.name: step(world, f"export-{one.name}").artifact for one in world.status.students} == made
    assert all(one.artifact == step(world, f"report-{one.name}").artifact for one in world.status.students)


def test_tasks_that_only_watch_a_distillation_make_nothing_anew_and_those_that_choose_do() -> None:
    plain = {"steps": 100}
    before = planned(evaluate=EVALUATE, distill=plain)
    watched = planned(evaluate=EVALUATE, distill={**plain, "taskInterval": 50, "tasks": ["hellaswag"]})
    assert changed(before, watched) == set()
    job = next(step for step in watched.steps if step.name == "distill-width")
    assert job.inputs["tasks"] == "tasks"
    assert all("tasks" not in step.inputs for step in before.steps if step.name == "distill-width")
    told = watched.job(job, run="demo", attempt=1).config
    assert isinstance(told, DistillJob) and told.tasks == "tasks-" + "t" * 32 and told.dtype == "bfloat16"
    assert told.scoring is not None and [task.name for task in told.scoring.tasks] == ["hellaswag"]
    on_the_way = planned(evaluate=EVALUATE, distill={**plain, "exportEvery": 50, "exportKeep": 2})
    assert changed(before, on_the_way) == set()
    chooses = {**plain, "taskInterval": 50, "keepBest": "hellaswag"}
    chosen = planned(evaluate=EVALUATE, distill=chooses)
    phases = ("distill", "evaluate", "export", "report")
    students = {f"{phase}-{student}" for phase in phases for student in ("width", "depth")}
    assert changed(before, chosen) == students
    found = {"prepare": resolved(), "tasks": ResolvedTasks(key="u" * 32, harness="0.4.13")}
    spec = manifest(evaluate=EVALUATE, distill=chooses).spec
    assert students <= changed(chosen, plan(spec, discovered=found)), "other questions choose another step"
    assert "distill-width" in changed(chosen, planned(evaluate=EVALUATE, distill=chooses, export={"dtype": "float16"}))


CHOOSES = {"steps": 100, "taskInterval": 50, "keepBest": "hellaswag"}


def chosen(*tasks: dict[str, Any], digests: dict[str, str], key: str = "t", **spec: Any) -> Plan:
    """A plan with a student whose weights hellaswag chooses, one whose layers it chooses and one whose shape."""
    students: list[dict[str, Any]] = [
        {"name": "width", "prune": {"hiddenSize": 64}},
        {"name": "depth", "prune": {"layers": 2, "importance": {"depth": "Task"}}},
        {"name": "small", "prune": {"target": {"ratio": 2, "rank": "Task"}}},
    ]
    found = {"prepare": resolved(), "tasks": ResolvedTasks(key=key * 32, harness="0.4.13", digests=digests)}
    asked = manifest(evaluate={"tasks": [*tasks]}, students=students, **({"distill": CHOOSES} | spec)).spec
    return plan(asked, discovered=found)


def test_what_a_task_chooses_depends_on_that_task_alone() -> None:
    one, found = {"name": "hellaswag"}, {"hellaswag": "a" * 32}
    before = chosen(one, digests=found)
    making = {name for name in marks(before) if name.startswith(("search", "prune", "distill", "export"))}
    more = chosen(one, {"name": "arc_easy"}, digests={**found, "arc_easy": "b" * 32}, key="u")
    assert not changed(before, more) & making, "another task is none of theirs"
    assert "evaluate-width" in changed(before, more), "it is asked all the same"
    moved = chosen({**one, "source": "pvc://data/tasks"}, digests=found, key="u")
    assert not changed(before, moved) & making, "the same task from another place"
    other = chosen(one, digests={"hellaswag": "c" * 32}, key="u")
    whose = {"search-small", "prune-depth", "distill-width", "export-width"}
    assert whose <= changed(before, other), "other questions choose others"
    assert "prune-width" not in changed(before, other)
    assert whose <= changed(before, chosen({**one, "limit": 7}, digests=found, key="u")), "so do fewer of them"
    listed = chosen(one, digests=found, distill={**CHOOSES, "tasks": ["hellaswag"]})
    assert not changed(before, listed), "what else is scored on the way chooses nothing"


def test_tasks_of_an_image_that_told_no_digests_are_one_whole() -> None:
    one = {"name": "hellaswag"}
    before = chosen(one, digests={})
    assert "distill-width" in changed(before, chosen(one, {"name": "arc_easy"}, digests={}, key="u"))


def test_an_edit_of_another_task_distils_no_student_again() -> None:
    two = {"tasks": [{"name": "hellaswag"}, {"name": "arc_easy", "limit": 100}]}
    world = World(manifest(evaluate=two, distill=CHOOSES))
    world.drive()
    made = {name: world.made[name] for name in world.made if name.startswith(("prune", "distill", "export"))}
    assert world.status.phase is RunPhase.SUCCEEDED and made
    world.edit(evaluate={"tasks": [{"name": "hellaswag"}, {"name": "arc_easy", "limit": 7}]})
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED
    assert world.made["tasks"] == world.made["evaluate-width"] == 2
    assert {name: world.made[name] for name in made} == made
    world.edit(evaluate={"tasks": [{"name": "hellaswag", "limit": 7}, {"name": "arc_easy", "limit": 7}]})
    world.drive()
    assert world.made["distill-width"] == 2 * made["distill-width"]


def test_no_training_begins_before_the_tasks_are_found() -> None:
    """A misspelt task must not show when a GPU is taken."""
    world = World(manifest(evaluate=EVALUATE))
    world.look()
    job = {world.jobs[name].job.step: name for name in open_jobs(world)}
    assert job.keys() == {"prepare", "tasks"}
    world.start(job["prepare"])
    world.succeed(job["prepare"])
    assert not created(world.look())
    assert step(world, "finetune").message == "waits for tasks"
    world.fail(job["tasks"], ExitClass.USER_ERROR)
    assert not created(world.look())
    assert world.status.phase is RunPhase.FAILED
    assert step(world, "finetune").message == "not started because tasks did not succeed"


def test_what_takes_a_gpu_waits_for_the_tasks_and_what_is_made_is_handed_out() -> None:
    steps = {one.name: one.predecessors for one in planned(evaluate=EVALUATE, finetune=None).steps}
    assert "tasks" in steps["prune-width"] and "tasks" in steps["distill-width"]
    assert "tasks" not in steps["export-width"]


def test_an_edit_of_the_tasks_holds_back_the_steps_that_have_not_begun() -> None:
    world = World(manifest(evaluate=EVALUATE, maxParallelJobs=8))
    world.look()
    finish(world)
    finish(world, "finetune")
    world.edit(evaluate={"tasks": [{"name": "helaswag"}]})
    assert created(world.look()) == ["tasks"]
    finish(world, "prune-width", "prune-depth")
    assert step(world, "distill-width").message == "waits for tasks"
    finish(world, "tasks")
    assert states(world)["distill-width"] == "Starting"
