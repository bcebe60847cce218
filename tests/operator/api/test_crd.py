"""The CRD: written from the models, structural, bounded, readable; its CEL and the local checks are one."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import cel
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator
from schema_strategies import instances

from compression_operator.api.check import findings, join, with_defaults
from compression_operator.api.crd import (
    DEFAULT_FILE,
    crd_text,
    custom_resource_definition,
    main,
    with_defaults_described,
)
from compression_operator.api.phase_settings import PhaseSettingsByPhase
from compression_operator.api.rules import World
from compression_operator.api.run import CompressionRun
from compression_operator.api.schema import NotStructural, structural_schema
from compression_operator.api.status import CompressionRunStatus
from compression_operator.api.validate import inspect
from compression_pipeline.config import ConfigModel, PruneConfig, one_of
from compression_pipeline.config.losses import LOSSES, LossField

REPOSITORY = Path(__file__).parents[3]
LOCAL_SCHEMA = structural_schema(CompressionRun)
VERSION = custom_resource_definition()["spec"]["versions"][0]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]
SPECS = instances(LOCAL_SCHEMA["properties"]["spec"])


def with_whole_losses(spec: Any) -> Any:
    """Each loss with the fields of its type and no others, which is for CEL to say: to the schema all types are one."""
    table = one_of(LossField)
    assert table is not None
    for training in (spec.get("distill"), *(student.get("distill") for student in spec["students"])):
        for loss in (training or {}).get("losses", []):
            for field, _ in [*table.misplaced(loss)]:
                loss.pop(field) if field in loss else loss.update({field: 1})
            fields = {field: value for field, value in loss.items() if field != "type"}
            # With the defaults of its own, which the schema of all types cannot give.
            loss.update(LOSSES[loss["type"]].model_validate(fields).to_json())
    return spec


WHOLE_SPECS = SPECS.map(deepcopy).map(with_whole_losses)
generous = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, join(path, name))
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


def document(spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "modelcompression.io/v1alpha1",
        "kind": "CompressionRun",
        "metadata": {"name": "demo"},
        "spec": spec,
    }


def pruned(value: Any) -> Any:
    """`value` without empty lists and objects, which say the same as their absence."""
    if isinstance(value, dict):
        kept = {key: pruned(child) for key, child in value.items()}
        return {key: child for key, child in kept.items() if child not in ({}, [])}
    return [pruned(item) for item in value] if isinstance(value, list) else value


def test_the_file_is_up_to_date() -> None:
    assert (REPOSITORY / DEFAULT_FILE).read_text() == crd_text(), "run `make crds`"


def test_it_is_written_where_told(tmp_path: Path) -> None:
    main([str(tmp_path / "charts" / "crd.yaml")])
    assert yaml.safe_load((tmp_path / "charts" / "crd.yaml").read_text()) == custom_resource_definition()


def test_it_is_small() -> None:
    """`kubectl apply` keeps it as JSON in an annotation, of which there may be 256 KiB."""
    assert len(json.dumps(custom_resource_definition(), separators=(",", ":")).encode()) < 224 * 1024


def test_every_default_of_the_spec_is_told_where_kubectl_explain_shows_it() -> None:
    distill = SCHEMA["properties"]["spec"]["properties"]["distill"]["properties"]
    assert distill["learningRate"]["description"] == "Peak learning rate, reached after warm-up. Default: 1e-4."
    assert distill["deterministic"]["description"].endswith(" Default: false.")
    untold = [
        (path, node["default"])
        for path, node in nodes(SCHEMA["properties"]["spec"])
        if node.get("default") not in (None, {}) and not re.search(r" Default: \S+\.$", node["description"])
    ]
    assert not untold
    assert "Default:" not in str(SCHEMA["properties"]["status"]), "nobody leaves a field of a status out"


@pytest.mark.parametrize(
    ("default", "written"), [(2.5e-5, "2.5e-5"), (1e-4, "1e-4"), (0.95, "0.95"), (5e-324, "4.94066e-324")]
)
def test_small_defaults_are_written_as_in_a_manifest(default: float, written: str) -> None:
    assert with_defaults_described({"type": "number", "default": default})["description"] == f"Default: {written}."


def test_names_and_subresources() -> None:
    names = custom_resource_definition()["spec"]["names"]
    assert (names["kind"], names["plural"], names["shortNames"]) == ("CompressionRun", "compressionruns", ["crun"])
    assert VERSION["subresources"] == {"status": {}}
    columns = {column["name"]: column["jsonPath"] for column in VERSION["additionalPrinterColumns"]}
    assert columns["Phase"] == ".status.phase"
    assert columns["Age"] == ".metadata.creationTimestamp"


def test_every_field_is_explained_in_plain_words() -> None:
    for path, node in nodes(SCHEMA):
        if path in ("", "metadata") or path.endswith("[]"):
            continue
        description = node.get("description", "")
        assert description.endswith("."), f"{path}: {description!r}"
        assert not re.search(r"[`*\n]|\]\(", description), f"{path}: {description!r}"


def test_spec_is_bounded() -> None:
    for path, node in nodes(SCHEMA["properties"]["spec"], "spec"):
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        if node.get("type") in ("integer", "number") and not path.endswith("tolerationSeconds"):
            assert {"minimum", "maximum"} <= node.keys(), path


def test_only_pods_parts_are_untyped() -> None:
    untyped = {path for path, node in nodes(SCHEMA) if node.get("x-kubernetes-preserve-unknown-fields")}
    template = "spec.jobTemplate."
    spec = {f"{template}{field}" for field in ("podTemplate", "affinity", "topologySpreadConstraints[]")}
    phases = PhaseSettingsByPhase.model_fields
    spec |= {f"spec.phases.{phase}.{field}" for phase in phases for field in ("podTemplate", "affinity")}
    assert {path for path in untyped if path.startswith("spec")} == spec


def test_patterns_mean_the_same_in_python_and_re2() -> None:
    patterns = [node["pattern"] for _, node in nodes(SCHEMA) if "pattern" in node]
    assert patterns
    for pattern in patterns:
        assert pattern.startswith("^") and pattern.endswith("$"), pattern
        assert not re.search(r"\\|\(\?", pattern), f"{pattern}: classes and groups differ between the two"
        depth = 0
        for character in pattern:
            depth += {"(": 1, ")": -1}.get(character, 0)
            assert depth or character != "|", f"{pattern}: ^ and $ would bind to one alternative each"


def test_conditions_merge_by_type_and_the_operators_own_lists_are_whole() -> None:
    status = SCHEMA["properties"]["status"]["properties"]
    assert status["conditions"]["x-kubernetes-list-type"] == "map"
    assert status["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    for field in ("steps", "students"):
        assert status[field]["x-kubernetes-list-type"] == "atomic"


def test_a_form_that_kubernetes_does_not_take_is_refused() -> None:
    class Either(ConfigModel):
        size: int | list[int]

    with pytest.raises(NotStructural):
        structural_schema(Either)


def cel_findings(schema: dict[str, Any], value: Any, path: str) -> Iterator[tuple[str, str]]:
    """What the API server's CEL rules say of `value`, by a CEL implementation that is not ours."""
    for rule in schema.get("x-kubernetes-validations", ()):
        context = cel.Context()
        context.add_variable("self", value)
        # CEL's own string extension, which the API server has and this implementation lacks.
        context.add_function("format", lambda text, arguments: text.replace("%d", "%s") % tuple(arguments))
        # Of Kubernetes' own list library.
        context.add_function("sum", lambda numbers: sum(numbers, 0.0))
        if cel.evaluate(rule["rule"], context) is True:
            continue
        message = rule.get("message") or cel.evaluate(rule["messageExpression"], context)
        yield path + rule.get("fieldPath", ""), message
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                yield from cel_findings(child, value[name], join(path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from cel_findings(schema["items"], item, f"{path}[{index}]")


def by_cel(filled: dict[str, Any]) -> list[tuple[str, str]]:
    return sorted(set(cel_findings(SCHEMA, filled, "")))


@settings(generous, max_examples=150)
@given(SPECS)
def test_cel_and_local_checks_say_the_same(spec: Any) -> None:
    filled, found = inspect(document(spec), World.CLUSTER)
    assert by_cel(filled) == sorted(found)


@settings(generous, max_examples=250)
@given(instances(structural_schema(PruneConfig)))
def test_cel_and_local_checks_say_the_same_of_sizes(prune: Any) -> None:
    spec: dict[str, Any] = {
        "teacher": {"model": "hf://a/b"},
        "dataset": {"source": "hf://a/b"},
        "students": [{"name": "a", "prune": prune, "distill": {"steps": 100}}],
        "storage": {"persistentVolumeClaim": {"claimName": "store"}},
    }
    filled, found = inspect(document(spec), World.CLUSTER)
    assert by_cel(filled) == sorted(found)


EVERY_SIZE: dict[str, Any] = {
    "teacher": {"model": "hf://a/b"},
    "dataset": {"source": "hf://a/b"},
    "finetune": {"steps": 1000},
    "students": [
        {
            "name": "a",
            "prune": {"hiddenSize": 64, "ffnHiddenSize": 64, "attentionHeads": 8, "layers": 4},
            "distill": {"steps": 1000},
        }
    ],
    "distill": {"steps": 1000},
    "storage": {"persistentVolumeClaim": {"claimName": "store"}},
}


def below_their_minimum(schema: dict[str, Any], value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The value with one number in it below its bound, each in turn; the path of that number."""
    if isinstance(value, dict):
        for name, child in value.items():
            for where, spoiled in below_their_minimum(schema["properties"][name], child, join(path, name)):
                yield where, {**value, name: spoiled}
    elif isinstance(value, list):
        for where, spoiled in below_their_minimum(schema["items"], value[0], f"{path}[0]"):
            yield where, [spoiled]
    elif "minimum" in schema:
        lowest = schema["minimum"]
        yield path, type(value)(lowest if schema.get("exclusiveMinimum") else lowest - 1)
        yield path, type(value)(-7)


def test_a_number_below_its_bound_is_told_once() -> None:
    schema = LOCAL_SCHEMA["properties"]["spec"]
    filled: Any = with_defaults(LOCAL_SCHEMA, document(EVERY_SIZE))
    spoiled = list(below_their_minimum(schema, filled["spec"], "spec"))
    assert len(spoiled) > 60
    for path, spec in spoiled:
        assert [where for where, _ in findings(schema, spec, "spec")] == [path]
        assert by_cel(document(spec)) == [], path


@settings(generous, max_examples=100)
@given(WHOLE_SPECS)
def test_what_the_schema_takes_the_models_take_and_give_back(spec: Any) -> None:
    filled = with_defaults(LOCAL_SCHEMA, document(spec))
    assert not list(findings(LOCAL_SCHEMA, filled))
    assert not list(Draft4Validator(SCHEMA).iter_errors(filled))
    dumped = CompressionRun.model_validate(filled).to_json()
    assert pruned(dumped)["spec"] == pruned(filled)["spec"]


@settings(generous, max_examples=100)
@given(instances(LOCAL_SCHEMA["properties"]["status"]))
def test_a_status_that_was_read_can_be_written(status: Any) -> None:
    written = CompressionRunStatus.model_validate(status).to_json()
    assert not list(findings(SCHEMA["properties"]["status"], written))
    assert CompressionRunStatus.model_validate(written).to_json() == written


JUNK = st.sampled_from([None, True, -1, 0, 0.5, 10**12, "", "Not A Name", "x" * 2000, [], {}, [1, 1], {"a": 1}]).map(
    deepcopy  # spoiling goes on within what was put in
)


@st.composite
def spoiled(draw: st.DrawFn) -> dict[str, Any]:
    """A document with a few fields exchanged for junk, removed or invented."""
    whole = document(draw(WHOLE_SPECS))
    for _ in range(draw(st.integers(1, 3))):
        node: Any = whole["spec"]
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
                action = draw(st.sampled_from(["replace", "remove", "invent"]))
                if action == "replace":
                    node[key] = draw(JUNK)
                elif action == "remove":
                    del node[key]
                elif isinstance(node, dict):
                    node["invented"] = draw(JUNK)
                break
            node = node[key]
    return whole


def json_path(parts: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


@settings(generous, max_examples=200)
@given(spoiled())
def test_what_the_schema_refuses_is_refused_at_the_same_path(whole: dict[str, Any]) -> None:
    filled = with_defaults(LOCAL_SCHEMA, whole)
    found = list(findings(LOCAL_SCHEMA, filled))
    theirs = set()
    for error in Draft4Validator(SCHEMA).iter_errors(filled):
        missing = "." + error.message.split("'")[1] if error.validator == "required" else ""
        theirs.add(json_path(error.absolute_path) + missing)
    # Kubernetes' own words, which JSON schema does not know.
    own = ("unknown field", "given twice", "must be an integer or a string")
    ours = {path for path, message in found if not any(word in message for word in own)}
    quantities = {path for path in ours | theirs if ".resources." in path}
    assert ours - quantities == theirs - quantities
    if not found:
        CompressionRun.model_validate(filled)
