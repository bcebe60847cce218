"""What a job tells an image that is older than the operator: no field that it may not know, unless the run uses it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ConfigDict, ValidationError, create_model
from test_render import a_run, environment, jobs

from compression_pipeline.config import CONFIG_VARIABLE, PHASES, PRECISION_VARIABLE, ConfigModel, Phase

Path = tuple[str, ...]


def told(**spec: Any) -> dict[Phase, str]:
    """Phase -> what its job is told."""
    made = jobs(a_run(**spec))
    return {
        phase: environment(made[name])[CONFIG_VARIABLE] for name in made for phase in Phase if name.startswith(phase)
    }


def fields_with_defaults(model: type[ConfigModel]) -> Iterator[Path]:
    """Every field, of the model and of the models in it, without which there may once have been an image."""
    for name, field in model.model_fields.items():
        if not field.is_required():
            yield (name,)
        if isinstance(field.annotation, type) and issubclass(field.annotation, ConfigModel):
            yield from ((name, *rest) for rest in fields_with_defaults(field.annotation))


def older(model: type[ConfigModel], path: Path) -> type[ConfigModel]:
    """The model as it was before this field came."""
    name, rest = path[0], path[1:]
    kept: dict[str, Any] = {n: (f.annotation, f) for n, f in model.model_fields.items() if n != name}
    if rest:
        within = model.model_fields[name]
        assert isinstance(within.annotation, type) and issubclass(within.annotation, ConfigModel)
        kept[name] = (older(within.annotation, rest), within)
    names = model.model_config.get("alias_generator")
    base = type("Base", (ConfigModel,), {"model_config": ConfigDict(extra="forbid", alias_generator=names)})
    return create_model(f"Older{model.__name__}", __base__=base, **kept)


@pytest.mark.parametrize("phase", Phase)
def test_an_image_from_before_any_field_runs_what_does_not_use_it(phase: Phase) -> None:
    scored = PHASES[phase].program in (Phase.TASKS, Phase.EVALUATE, Phase.REPORT)
    evaluate = {"tasks": [{"name": "hellaswag"}]} if scored else None
    searched = [{"name": "small", "prune": {"target": {"ratio": 2}}}] if phase is Phase.SEARCH else None
    cached = {"distill": {"steps": 10, "teacherLogits": "Cached"}} if phase is Phase.LOGITS else {}
    spec = {"evaluate": evaluate, **({"students": searched} if searched else {}), **cached}
    text, model = told(**spec)[phase], PHASES[phase].job
    unused = 0
    for path in fields_with_defaults(model):
        used = value_at(json.loads(text), model, path) is not None
        if not used:
            older(model, path).model_validate_json(text)
        unused += not used
    assert unused > 5
    told_whole = model.model_validate_json(text)
    assert model.model_validate(told_whole.to_json()) == told_whole, "as when it was told every field"


def value_at(said: Any, model: type[ConfigModel], path: Path) -> Any:
    """What is said of a field, None where nothing is."""
    field = model.model_fields[path[0]]
    found = said.get(field.alias or path[0])
    if found is None or len(path) == 1:
        return found
    assert isinstance(field.annotation, type) and issubclass(field.annotation, ConfigModel)
    return value_at(found, field.annotation, path[1:])


def test_only_what_the_run_sets_is_said_and_the_arithmetic_of_trainings() -> None:
    """Every image knows that field, and refuses BF16 where its GPU can't be used."""
    distill = json.loads(told(distill={"steps": 1000, "learningRate": 0.0002})[Phase.DISTILL])
    assert distill["distill"] == {"steps": 1000, "learningRate": 0.0002, "precision": "BF16"}


def test_an_image_from_before_the_arithmetic_was_settled_prunes() -> None:
    assert "precision" not in told()[Phase.PRUNE], "it finds what its device has by itself"


@pytest.mark.parametrize(("gpus", "arithmetic"), [(1, "BF16"), (0, "FP32")])
def test_a_prune_is_told_the_arithmetic_that_its_key_counts_on(gpus: int, arithmetic: str) -> None:
    """As a variable, which older images leave alone. No other phase is: trainings have a setting for it."""
    made = jobs(a_run(phases={"prune": {"gpusPerNode": gpus}}))
    said = {name: environment(job).get(PRECISION_VARIABLE) for name, job in made.items()}
    assert {name: value for name, value in said.items() if value} == {
        name: arithmetic for name in made if name.startswith("prune")
    }


def test_an_image_from_before_a_field_that_the_run_uses_refuses_it_by_name() -> None:
    text = told(distill={"steps": 1000, "learningRate": 0.0002})[Phase.DISTILL]
    with pytest.raises(ValidationError) as refused:
        older(PHASES[Phase.DISTILL].job, ("distill", "learning_rate")).model_validate_json(text)
    [fault] = refused.value.errors()
    assert (fault["type"], fault["loc"]) == ("extra_forbidden", ("distill", "learningRate"))
