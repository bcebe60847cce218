"""What one program writes and another reads: whoever knows less reads over what it does not know, at every depth."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs_world import World
from looks import FINETUNED, at, states
from pydantic import BaseModel, ValidationError
from schema_strategies import instances

from compression_operator.api.schema import structural_schema
from compression_operator.api.spec import CompressionRunSpec
from compression_operator.api.status import CompressionRunStatus, RunPhase
from compression_operator.cli.invocation import Invocation
from compression_operator.local.jobfiles import ExitRecord, JobRecord, ProcessRecord
from compression_pipeline.artifact import Manifest
from compression_pipeline.config import PHASES, Architecture, ConfigModel, Record, ResolvedSource, Termination
from compression_pipeline.launcher.heartbeat import Holder
from compression_pipeline.launcher.outcome import Outcome

READ = [
    *(Architecture, CompressionRunStatus, ExitRecord, Holder, Invocation, JobRecord, Manifest, Outcome, ProcessRecord),
    *(ResolvedSource, Termination, *(phase.result for phase in PHASES.values())),
]
WRITTEN_BY_USERS = [CompressionRunSpec, *(phase.job for phase in PHASES.values())]


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that values of this type hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for argument in get_args(annotation):
        yield from models(argument)


@pytest.mark.parametrize("model", READ)
def test_all_that_a_record_holds_is_one(model: type[Record]) -> None:
    assert {one.__name__ for one in models(model) if one.model_config.get("extra") != "ignore"} == set()


@pytest.mark.parametrize("model", WRITTEN_BY_USERS)
def test_nothing_that_a_user_writes_is_read_over(model: type[ConfigModel]) -> None:
    assert {one.__name__ for one in models(model) if one.model_config.get("extra") != "forbid"} == set()


def schema_of(model: type[Record]) -> dict[str, Any]:
    """As a CRD would say it; what may hold anything holds nothing here."""

    def typed(node: dict[str, Any]) -> dict[str, Any]:
        if node.get("x-kubernetes-preserve-unknown-fields"):
            return {"type": "object"}
        children = {name: typed(child) for name, child in node.get("properties", {}).items()}
        items = {"items": typed(node["items"])} if "items" in node else {}
        return node | items | ({"properties": children} if children else {})

    return typed(structural_schema(model))


def more(value: Any, schema: dict[str, Any], data: st.DataObject) -> Any:
    """The value with fields of the future in every object of a model."""
    if isinstance(value, list):
        return [more(item, schema["items"], data) for item in value]
    properties = schema.get("properties")
    if not isinstance(value, dict) or not properties:
        return value
    new = data.draw(st.dictionaries(st.sampled_from(["soon", "later"]), st.none() | st.text() | st.just({"deep": [1]})))
    return new | {name: more(child, properties[name], data) for name, child in value.items()}


@pytest.mark.parametrize("model", READ)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_fields_of_another_version_are_read_over(model: type[Record], data: st.DataObject) -> None:
    schema = schema_of(model)
    value = data.draw(instances(schema))
    try:
        known = model.model_validate(value)
    except ValidationError:
        return  # a value that only its schema takes
    assert model.model_validate(more(value, schema, data)) == known


# -- a status that holds words of another version ---------------------------------------------------------------------


@pytest.mark.parametrize("word", ["family", "activation", "normalization"])
def test_a_run_goes_on_after_the_operator_went_back_to_an_older_version(word: str) -> None:
    world = at(World(), *FINETUNED)
    status = world.status.model_dump(by_alias=True)
    status["phase"] = "Verifying"
    status["teacher"][word] = "Mamba"
    status["steps"][2]["state"] = "Verifying"
    status["steps"][3]["state"] = "Queued"
    del status["steps"][3]["jobName"]
    status["steps"].append({"name": "audit-width", "phase": "audit", "state": "Running"})
    read = CompressionRunStatus.model_validate(status)
    assert [one.state.value for one in read.steps[2:4]] == ["Starting", "Pending"]
    assert read.teacher is None and read.step("audit-width") is None
    world.run = world.run.model_copy(update={"status": read})
    world.drive()
    assert world.status.phase is RunPhase.SUCCEEDED and set(states(world).values()) == {"Succeeded"}


@pytest.mark.parametrize("field", ["phase", "state"])
def test_what_is_no_word_of_any_version_is_refused(field: str) -> None:
    step = {"name": "prepare", "phase": "prepare"} | {field: 7}
    with pytest.raises(ValidationError, match=field):
        CompressionRunStatus.model_validate({"steps": [step]})
