"""The gate: what a student must reach, and what becomes of a run whose student does not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs_world import World, manifest, student
from looks import at, created, told
from tests.support.matchers import has_condition

from compression_operator.api.status import CompressionRunStatus, Evaluation, RunPhase, StepState, StudentStatus
from compression_operator.core.conditions import ACCEPTED, KINDS
from compression_operator.core.gates import judged
from compression_operator.core.plan import plan
from compression_pipeline.config import (
    AcceptConfig,
    DistillJob,
    GateFigures,
    Phase,
    TaskGate,
    TaskScore,
    misses,
    verdicts,
)

losses = st.none() | st.floats(0, 100)
limits = st.none() | st.floats(0, 100)


@st.composite
def gates(draw: st.DrawFn) -> AcceptConfig:
    most, over = draw(st.tuples(st.none() | st.floats(1e-3, 100), limits).filter(lambda pair: pair != (None, None)))
    return AcceptConfig(max_validation_loss=most, max_loss_over_teacher=over)


@given(gates(), losses, losses)
def test_a_gate_is_missed_where_a_figure_is_above_its_limit(
    accept: AcceptConfig, loss: float | None, teacher: float | None
) -> None:
    found = {verdict.criterion: verdict for verdict in verdicts(accept, GateFigures(loss, teacher))}
    asked = {"maxValidationLoss": accept.max_validation_loss, "maxLossOverTeacher": accept.max_loss_over_teacher}
    assert {name: verdict.limit for name, verdict in found.items()} == {k: v for k, v in asked.items() if v is not None}
    over = None if loss is None or teacher is None else loss - teacher
    for name, measured in (("maxValidationLoss", loss), ("maxLossOverTeacher", over)):
        if name in found:
            met = None if measured is None else measured <= found[name].limit
            assert (found[name].measured, found[name].met) == (measured, met)
    assert misses(accept, GateFigures(loss, teacher)) == any(one.met is False for one in found.values())


def world_of(*students: dict[str, Any], **spec: Any) -> World:
    return World(manifest(students=list(students), finetune=None, **spec))


def gated(name: str, most: float, **sizes: Any) -> dict[str, Any]:
    return student(name, **sizes) | {"accept": {"maxLossOverTeacher": most}}


# A distillation of this world ends two nats above its teacher.


def test_a_student_that_misses_its_gate_fails_the_run_and_costs_no_other() -> None:
    world = world_of(gated("width", 1.5, hiddenSize=128), gated("depth", 2, dropLayers=[3]))
    world.look()
    assert has_condition(world, ACCEPTED, "Unknown", reason="NotMeasured")
    world.drive()
    assert world.status.phase is RunPhase.FAILED
    assert {step.state for step in world.status.steps} == {StepState.SUCCEEDED}
    width, depth = world.status.student("width"), world.status.student("depth")
    assert width and depth and width.artifact and depth.artifact, "both checkpoints are there, and named"
    assert [one.to_json() for one in width.gate or ()] == [
        {"criterion": "maxLossOverTeacher", "limit": 1.5, "measured": 2.0, "met": False}
    ]
    assert [one.met for one in depth.gate or ()] == [True]
    said = "width misses accept: maxLossOverTeacher is 1.5 and 2.0000 was measured; its checkpoint is " + width.artifact
    for kind in (ACCEPTED, "Ready"):
        assert has_condition(world, kind, "False", reason="GateMissed", message=said)
    assert has_condition(world, "Stalled", "True", reason="GateMissed", message=said)
    assert has_condition(world, "Degraded", "True", reason="GateMissed", message=said)
    assert world.status.completion_time is not None


def test_a_run_whose_students_meet_the_gate_succeeds_and_says_so() -> None:
    world = world_of(
        student("width", hiddenSize=128), student("depth", dropLayers=[3]), accept={"maxLossOverTeacher": 2}
    )
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED
    assert has_condition(world, ACCEPTED, "True", reason="GateMet")


def test_without_a_gate_there_is_no_condition_of_one() -> None:
    world = World()
    world.drive()
    assert {condition.type for condition in world.status.conditions} == set(KINDS)


def test_a_gate_that_is_relaxed_makes_nothing_anew() -> None:
    world = world_of(student("width", hiddenSize=128), accept={"maxLossOverTeacher": 1.5})
    world.drive()
    assert world.status.phase is RunPhase.FAILED
    world.edit(accept={"maxLossOverTeacher": 3})
    decision = world.look()
    assert not created(decision) and world.status.phase is RunPhase.SUCCEEDED
    assert told(decision) == ["RunSucceeded"]
    assert has_condition(world, ACCEPTED, "True", reason="GateMet")
    world.edit(accept=None)
    world.look()
    assert {condition.type for condition in world.status.conditions} == set(KINDS)


def test_a_gate_is_open_while_what_it_judges_is_made_again() -> None:
    world = world_of(student("width", hiddenSize=128), accept={"maxLossOverTeacher": 1.5})
    world.drive()
    world.edit(export={"dtype": "float32"})
    world.look()
    assert world.status.phase is RunPhase.EXPORTING
    assert has_condition(world, ACCEPTED, "Unknown", reason="NotMeasured")


@pytest.mark.parametrize("forged", [RunPhase.SUCCEEDED, RunPhase.PENDING])
def test_a_missed_gate_is_found_again_where_somebody_wrote_into_the_status(forged: RunPhase) -> None:
    world = world_of(student("width", hiddenSize=128), accept={"maxLossOverTeacher": 1.5})
    world.drive()
    done = world.status
    students = [one.model_copy(update={"gate": None}) for one in done.students]
    kept = [one for one in done.conditions if one.type != ACCEPTED]
    changes = {"phase": forged, "students": students, "conditions": kept}
    world.run = world.run.model_copy(update={"status": done.model_copy(update=changes)})
    assert not world.look().actions
    assert world.status.model_copy(update={"conditions": done.conditions}) == done
    assert has_condition(world, ACCEPTED, "False", reason="GateMissed")


def score(value: float, *, higher: bool = True) -> TaskScore:
    return TaskScore(name="hellaswag", metric="acc", score=value, samples=10, higher_is_better=higher)


@given(st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_a_score_must_reach_its_gate(wanted: float, found: float, higher: bool) -> None:
    accept = AcceptConfig(tasks=[TaskGate(name="hellaswag", score=wanted)])
    [verdict] = verdicts(accept, GateFigures(None, None, [score(found, higher=higher)]))
    assert verdict.criterion == "tasks.hellaswag" and verdict.measured == found
    assert verdict.met is (found >= wanted if higher else found <= wanted)
    [open_yet] = verdicts(accept, GateFigures(1.0, 1.0))
    assert open_yet.met is None and not misses(accept, GateFigures(1.0, 1.0))


def test_a_gate_on_tasks_is_open_until_the_student_is_scored() -> None:
    tasks = [{"name": "hellaswag", "score": 0.5}]
    evaluate = {"tasks": [{"name": "hellaswag"}]}
    world = world_of(student("width", hiddenSize=128), accept={"tasks": tasks}, evaluate=evaluate)
    exported = StudentStatus(name="width", artifact="export-1")
    scored = exported.model_copy(update={"evaluation": Evaluation(tasks=[score(0.4)])})
    for status, met in ((exported, None), (scored, False)):
        [shown] = judged(world.run.spec, CompressionRunStatus(students=[status])).students
        assert [verdict.met for verdict in shown.gate or ()] == [met]


def test_judging_is_the_same_twice() -> None:
    world = world_of(student("width", hiddenSize=128), accept={"maxLossOverTeacher": 1.5})
    world.drive()
    assert judged(world.run.spec, world.status) == world.status


# -- what the gate has to do with keys -------------------------------------------------------------------------------


def marks(**spec: object) -> dict[str, str | None]:
    world = at(World(manifest(**spec)), Phase.PREPARE)
    return {step.name: step.fingerprint for step in world.status.steps}


def test_a_gate_is_in_the_keys_only_where_it_trains_on() -> None:
    plain = marks()
    assert marks(accept={"maxValidationLoss": 2}) == plain
    extended = marks(accept={"maxValidationLoss": 2, "extendSteps": 5})
    changed = {name for name in plain if extended[name] != plain[name]}
    assert changed == {"distill-width", "distill-depth", "export-width", "export-depth"}


def test_how_losses_are_measured_is_in_the_key_where_they_decide_what_is_made() -> None:
    def distilled(samples: int, **accept: object) -> str | None:
        world = at(World(manifest(validation={"samples": samples}, accept=accept)), Phase.PREPARE)
        steps = plan(world.run.spec, discovered={"prepare": world.status.resolved}) if world.status.resolved else None
        assert steps
        found = steps.get("distill-width")
        return found and found.artifact

    assert distilled(8, maxValidationLoss=2) == distilled(16, maxValidationLoss=2)
    assert distilled(8, maxValidationLoss=2, extendSteps=5) != distilled(16, maxValidationLoss=2, extendSteps=5)


def test_a_distillation_is_told_of_the_gate_that_extends_it() -> None:
    world = world_of(student("width", hiddenSize=128), accept={"maxValidationLoss": 2, "extendSteps": 5})
    at(world, Phase.PREPARE, Phase.PRUNE)
    [job] = [truth.job for truth in world.jobs.values() if truth.job.phase is Phase.DISTILL]
    assert isinstance(job.config, DistillJob)
    assert job.config.accept == AcceptConfig(max_validation_loss=2, extend_steps=5)
