"""Students that have a target: their steps, fingerprints, and what the status tells of them."""

from typing import Any

from jobs_results import TEACHER
from jobs_world import World, manifest
from looks import at, created, finish, open_jobs, step

from compression_operator.api.resolved import ResolvedTasks
from compression_operator.api.status import Resolved, StepState, StudentStatus
from compression_operator.core.plan import Plan, PlannedStep, plan
from compression_pipeline.config import GenerationConfig, Phase, Search, Shape


def one(world: World) -> StudentStatus:
    found = world.status.student("small")
    assert found is not None
    return found


SIZES = {"name": "width", "prune": {"hiddenSize": 128}}


def small(distill: dict[str, Any] | None = None, **target: Any) -> dict[str, Any]:
    own = {"distill": distill} if distill else {}
    return {"name": "small", "prune": {"divisor": 32, "target": {"ratio": 2, **target}}, **own}


def planned(*students: dict[str, Any], **spec: Any) -> Plan:
    source = {"source": "hf://owner/x", "revision": "abc", "digest": "d"}
    found = Resolved.model_validate({"key": "k" * 32, "teacher": source, "dataset": source})
    return plan(manifest(students=list(students), **spec).spec, discovered={"prepare": found})


def mark(of: Plan, name: str) -> str | None:
    found = of.get(name)
    assert found is not None, name
    return found.fingerprint


def test_only_a_target_that_is_measured_has_a_search_and_others_are_planned_as_before() -> None:
    alone, beside = planned(SIZES), planned(SIZES, small())
    assert all(mark(beside, one.name) == one.fingerprint for one in alone.steps)
    search, prune, export = (beside.get(f"{phase}-small") for phase in ("search", "prune", "export"))
    assert search and prune and export and beside.get("search-width") is None
    assert search.dependencies == prune.dependencies[:2] and search.name in prune.dependencies
    assert search.name in export.dependencies, "the card tells of the search"
    by_shape = planned(SIZES, small(rank="Shape"))
    assert by_shape.get("search-small") is None and mark(by_shape, "prune-small") != prune.fingerprint


def test_what_is_measured_makes_the_key_of_a_search_and_of_what_rests_on_it() -> None:
    before = planned(small(distillSteps=10))
    for other in (
        planned(small(distillSteps=20)),
        planned(small(distillSteps=10, candidates=3)),
        planned(small(distillSteps=10), validation={"samples": 7}),
        planned(small(distillSteps=10, distill={"steps": 100, "learningRate": 2e-4})),
    ):
        assert mark(other, "search-small") != mark(before, "search-small")
        assert mark(other, "prune-small") != mark(before, "prune-small")
    longer = planned(small(distillSteps=10, distill={"steps": 500}))
    assert mark(longer, "search-small") == mark(before, "search-small"), "only the short distillation is the search's"


def test_what_shapes_no_search_and_no_student_is_no_part_of_their_keys() -> None:
    before = planned(small(axes=["hiddenSize", "layers"]))
    assert mark(planned(small(axes=["layers", "hiddenSize"])), "search-small") == mark(before, "search-small")
    often = small()
    often["prune"]["iterations"] = 3
    assert mark(planned(often), "search-small") == mark(planned(small()), "search-small")
    assert mark(planned(often), "prune-small") != mark(planned(small()), "prune-small")
    by_shape = planned(small(rank="Shape"))
    assert mark(planned(small(rank="Shape", candidates=3)), "prune-small") == mark(by_shape, "prune-small")


def test_the_status_tells_the_candidates_and_the_shape_while_the_search_stands() -> None:
    world = at(World(manifest(students=[small(candidates=2)])), Phase.PREPARE)
    assert one(world).shape is None and one(world).planned is not None, "the first candidate stands for the student"
    finish(world)
    finish(world)
    found = one(world)
    assert found.shape is not None and found.candidates is not None and len(found.candidates) == 2
    assert found.shape.shape == found.candidates[0].shape == Shape(3, 128, 256, 8)
    assert found.planned is not None and found.planned.parameters == found.shape.shape.architecture(TEACHER).parameters
    world.edit(students=[small(candidates=3)])
    world.look()
    assert one(world).shape is None and one(world).candidates is None


def test_by_shape_alone_the_shape_is_known_with_the_teacher() -> None:
    world = at(World(manifest(students=[small(rank="Shape")])), Phase.PREPARE)
    world.look()
    search = Search.of(TEACHER, world.run.spec.students[0].prune)
    found = one(world).shape
    assert search is not None and found is not None
    assert found.shape == Shape.of(search.found.best[0])


def test_a_target_that_no_shape_meets_stops_the_run_before_any_gpu() -> None:
    world = at(World(manifest(students=[small(ratio=900)])), Phase.PREPARE)
    assert created(world.look()) == [] and open_jobs(world) == []
    assert "spec.students[0].prune.target: no shape has" in step(world, "search-small").message


def test_a_whole_run_with_a_search_succeeds() -> None:
    world = World(manifest(students=[SIZES, small()]))
    world.drive()
    assert {found.state for found in world.status.steps} == {StepState.SUCCEEDED}


TASKS = {"tasks": [{"name": "one"}, {"name": "other", "limit": 50}]}


def test_a_search_by_a_task_reads_it_and_its_key_is_of_that_task_as_it_is_asked() -> None:
    def key(evaluate: dict[str, Any] = TASKS, **target: Any) -> str | None:
        source = {"source": "hf://owner/x", "revision": "abc", "digest": "d"}
        prepared = Resolved.model_validate({"key": "k" * 32, "teacher": source, "dataset": source})
        fetched = ResolvedTasks.model_validate({"key": "t" * 32, "harness": "1"})
        spec = manifest(students=[small(**target)], evaluate=evaluate).spec
        return mark(plan(spec, discovered={"prepare": prepared, "tasks": fetched}), "search-small")

    before = key(rank="Task")
    assert before is not None
    assert key(rank="Task", rankTask="other") != before
    assert key(rank="Task", rankSamples=20) != before and key() != before
    other = {"tasks": [TASKS["tasks"][0], {"name": "other", "limit": 7}]}
    assert key(other, rank="Task") == before, "how another task is asked is not its"
    assert key(other) == key(), "by loss none is"
    found = planned(small(rank="Task"), evaluate=TASKS).get("search-small")
    pruned = planned(small(rank="Task"), evaluate=TASKS).get("prune-small")
    assert found and pruned and found.inputs["tasks"] == "tasks" and "tasks" not in pruned.inputs
    assert found.configuration["ranked_by"].tasks[0].name == "one"


def test_a_search_for_a_speed_is_timed_as_evaluate_times_and_its_key_is_of_that() -> None:
    def search(**evaluate: Any) -> PlannedStep:
        found = planned(small_by_speed, **({"evaluate": {"generation": evaluate}} if evaluate else {}))
        step = found.get("search-small")
        assert step is not None and found.get("prune-small") is not None
        return step

    small_by_speed = {"name": "small", "prune": {"divisor": 32, "target": {"tokensPerSecond": 60}}}
    before = search()
    assert before.configuration["generation"] == GenerationConfig() and before.configuration["dtype"] == "bfloat16"
    assert search(batchSize=8).fingerprint != before.fingerprint != mark(planned(small()), "search-small")
    sized = mark(planned(small()), "search-small")
    assert mark(planned(small(), evaluate={"generation": {"batchSize": 8}}), "search-small") == sized
