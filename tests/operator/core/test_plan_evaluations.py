"""Steps that evaluate models: their fingerprints, and who waits for them."""

from typing import Any

from jobs_world import World, manifest
from looks import created, open_jobs, step

from compression_operator.api.run import TASK_SOURCES_ANNOTATION
from compression_operator.api.status import Resolved, ResolvedTasks, RunPhase
from compression_operator.core.plan import Plan, plan
from compression_pipeline.config import ExitClass

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
    added = {"tasks", "baseline", "baseline-corrected", "evaluate-width", "evaluate-depth"}
    assert marks(after).keys() - marks(before).keys() == added
    differ = {name for name, mark in marks(before).items() if marks(after)[name] != mark}
    assert differ == {"export-width", "export-depth"}, "the card tells of the scores"


def test_a_score_counts_for_one_model_and_one_way_to_ask() -> None:
    before = planned(evaluate=EVALUATE)
    evaluations = {"baseline", "baseline-corrected", "evaluate-width", "evaluate-depth"}
    exports = {"export-width", "export-depth"}
    assert len({marks(before)[name] for name in evaluations}) == 4
    asked = changed(before, planned(evaluate={"tasks": [{"name": "hellaswag", "shots": 10}]}))
    assert asked == {"tasks", *evaluations, *exports}, "the step tasks checks what is asked"
    faster = changed(before, planned(evaluate={**EVALUATE, "batchSize": 2, "generation": {}}))
    assert faster == {*evaluations, *exports}, "the tasks are the same"
    rounded = changed(before, planned(evaluate=EVALUATE, export={"dtype": "float16"}))
    assert rounded == {"evaluate-width", "evaluate-depth", *exports}
    found = {"prepare": resolved("k" * 32), "tasks": ResolvedTasks(key="u" * 32, harness="0.4.13")}
    other = plan(manifest(evaluate=EVALUATE).spec, discovered=found)
    assert changed(before, other) == {*evaluations, *exports}, "other questions"
    touched = plan(manifest(evaluate=EVALUATE).spec, discovered=DISCOVERED, sources={TASK_SOURCES_ANNOTATION: "a"})
    assert changed(before, touched) == {"tasks"}, "files of tasks are not those of the teacher"
    on_cpu = plan(manifest(evaluate=EVALUATE).spec, discovered=DISCOVERED, gpus=False)
    assert evaluations <= changed(before, on_cpu), "another arithmetic"


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


def test_the_first_steps_of_students_wait_for_the_tasks_too() -> None:
    steps = {one.name: one.predecessors for one in planned(evaluate=EVALUATE, finetune=None).steps}
    assert "tasks" in steps["prune-width"] and "tasks" not in steps["distill-width"]
