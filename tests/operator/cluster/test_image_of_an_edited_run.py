"""Which image a run's jobs have after edits and upgrades of the operator: today's where an edit plans a step anew."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_world import World, manifest
from looks import FINETUNED, PREPARED, at, finish

from compression_operator.api.run import RETRY_ANNOTATION
from compression_operator.api.status import CompressionRunStatus, StepState
from compression_operator.cluster.runs import with_image
from compression_pipeline.config import Phase

NEW_STEP = {"students": [{"name": "third", "prune": {"layers": 3}}]}


class Operated(World):
    """A world whose operator has an image."""

    version = 1

    @property
    def today(self) -> str:
        return f"pipeline:{self.version}"

    def look(self, *arguments: Any, **more: Any) -> Any:
        self.run = with_image(self.run, self.today)
        return super().look(*arguments, **more)


def upgraded(*done: Phase) -> Operated:
    """A run after these phases, whose operator was upgraded."""
    world = Operated()
    at(world, *done)
    world.version = 2
    return world


@pytest.mark.parametrize(
    ("edit", "image"),
    [
        ({"maxParallelJobs": 1}, "pipeline:1"),
        ({"suspend": True}, "pipeline:1"),
        ({"phases": {"distill": {"retryLimit": 9}}}, "pipeline:1"),
        ({"jobTemplate": {"image": "mine:1"}}, "mine:1"),
        ({"validation": {"samples": 8}}, "pipeline:2"),  # a field of jobs that an old image does not know (`key`)
        ({"distill": {"steps": 101}}, "pipeline:2"),
        (NEW_STEP, "pipeline:2"),
    ],
)
def test_an_edit_takes_todays_image_where_it_plans_a_step_anew(edit: dict[str, Any], image: str) -> None:
    world = upgraded(*FINETUNED)
    world.look()
    assert world.status.image == "pipeline:1", "an upgrade alone changes nothing"
    world.edit(**edit)
    world.look()
    assert world.status.image == image
    world.version = 3
    world.drive()
    assert world.status.image == image, "until the end"


def test_a_retry_without_an_edit_keeps_the_image() -> None:
    world = upgraded(*PREPARED)
    world.annotate(RETRY_ANNOTATION, "once")
    world.look()
    assert world.status.image == "pipeline:1" and world.status.handled_retry == "once"


def test_an_edit_while_prepare_goes_on_takes_todays_image() -> None:
    """No later step is planned yet, so nothing tells what the edit changes of it."""
    world = upgraded()
    world.edit(distill={"steps": 101})
    world.look()
    assert world.status.image == "pipeline:2"


def test_a_run_that_was_never_planned_keeps_the_image_that_its_status_has() -> None:
    """Problem was told on it before it was planned, or its status was written by hand."""
    world = Operated()
    world.run = world.run.model_copy(update={"status": CompressionRunStatus(image="pipeline:0")})
    world.look()
    assert world.status.image == "pipeline:0"


EDITS = st.sampled_from(
    [
        {"distill": {"steps": 100}},
        {"distill": {"steps": 101}},
        {"finetune": {"steps": 201}},
        {"validation": {"samples": 8}},
        {"export": {"dtype": "float32"}},
        {"dataset": {"source": "hf://owner/text", "sequenceLength": 32}},
        {"suspend": True},
        {"suspend": False},
        {"maxParallelJobs": 1},
        {"students": manifest().spec.to_json()["students"][:1]},
        NEW_STEP,
    ]
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), EDITS),
        st.tuples(st.sampled_from(["upgrade", "look", "finish", "finish", "retry"]), st.just({})),
    ),
    max_size=14,
)


@settings(deadline=None)
@given(EVENTS)
def test_through_all_histories_only_an_edit_that_plans_anew_changes_the_image(events: list[Any]) -> None:
    world = Operated()
    world.look()
    expected = world.today
    for number, (what, edit) in enumerate(events):
        match what:
            case "edit":
                world.edit(**edit)
            case "upgrade":
                world.version += 1
            case "finish":
                finish_open(world)
            case "retry":
                world.annotate(RETRY_ANNOTATION, str(number))
            case _:
                pass
        before, edited = world.status, world.run.metadata.generation != world.status.observed_generation
        world.look()
        marks = {step.name: step.fingerprint for step in before.steps}
        after = world.status.steps
        if edited and any(step.fingerprint is None or step.fingerprint != marks.get(step.name) for step in after):
            expected = world.today
        assert world.status.image == expected
        for step in after:
            if edited and step.state is StepState.STARTING and step.fingerprint != marks.get(step.name):
                assert world.status.image == world.today, "what it asks for, only this image may know"


def finish_open(world: World) -> None:
    if not world.run.spec.suspend:
        finish(world)
