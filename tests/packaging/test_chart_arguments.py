"""What the chart tells the operator: images and flags."""

import json

import pytest
import yaml
from tests.packaging.helm import CHART, REPOSITORY, Refused, container, everything, render

from compression_operator.backends.pods.platform_defaults import PLAIN, RESERVED
from compression_operator.cluster.options import parse


def test_the_arguments_are_the_operators() -> None:
    options = parse(container(render(everything()))["args"])
    assert options.image == "registry.example/pipeline:2.0"
    assert (options.workers, options.resync_seconds) == (32, 120)
    assert (options.missed_seconds, options.progress_seconds) == (90, 10)
    assert (options.log_format, options.log_level) == ("text", "debug")
    assert options.per_run_metrics is False
    assert options.leader_election is True
    defaults = parse(container(render({}))["args"])
    assert (defaults.log_format, defaults.per_run_metrics, defaults.namespace) == ("json", True, [])
    theirs = parse(["--image=x"])
    for flag in ("workers", "resync_seconds", "missed_seconds", "progress_seconds", "port", "log_level"):
        assert getattr(defaults, flag) == getattr(theirs, flag), f"the chart and the operator differ in {flag}"


def test_jobs_get_what_the_values_say() -> None:
    """The chart hands its values over as they are: whatever the schema lets through, the operator takes."""
    assert parse(container(render({}))["args"]).jobs == PLAIN, "what the chart leaves unsaid is the operator's own"
    given = everything()["jobs"]
    assert parse(container(render(everything()))["args"]).jobs.to_json() == given
    odd = {"annotations": {"a": "<&> \"quoted\" 'it' {{ x }}\n#%"}}
    assert parse(container(render({"jobs": odd}))["args"]).jobs.annotations == odd["annotations"]


def test_nothing_in_the_values_of_jobs_is_expanded_in_the_operators_pod() -> None:
    """Kubernetes expands $(NAME) in arguments, and takes $$ for $."""
    env = [{"name": "WORKER", "value": "$(POD_NAME) costs 5$ or $$"}]
    (argument,) = [one for one in container(render({"jobs": {"env": env}}))["args"] if one.startswith("--jobs=")]
    assert "$$(POD_NAME) costs 5$$ or $$$$" in argument
    assert parse(["--image=x", argument.replace("$$", "$")]).jobs.to_json()["env"] == env


REFERENCES: list[dict[str, dict[str, object]]] = [
    {"secretKeyRef": {"name": "s", "key": "k", "optional": True}},
    {"configMapKeyRef": {"name": "s", "key": "k", "optional": False}},
    {"fieldRef": {"fieldPath": "metadata.labels['team']", "apiVersion": "v1"}},
    {"resourceFieldRef": {"resource": "limits.memory", "containerName": "pytorch", "divisor": "1Mi"}},
    {"resourceFieldRef": {"resource": "requests.cpu", "divisor": 1}},
]


def test_variables_come_from_where_a_containers_may() -> None:
    env = [{"name": f"V{number}", "valueFrom": one} for number, one in enumerate(REFERENCES)]
    options = parse(container(render({"jobs": {"env": env}}))["args"])
    assert options.jobs.to_json()["env"] == env


@pytest.mark.parametrize("given", [{}, {"fieldRef": {}}, {"resourceFieldRef": {"divisor": 1}}, {"aRef": {}}])
def test_a_variable_that_comes_from_nowhere_is_refused(given: dict[str, object]) -> None:
    env = [{"name": "A", "valueFrom": given}]
    with pytest.raises(Refused, match="at '/jobs/env/0/valueFrom"):
        render({"jobs": {"env": env}})
    with pytest.raises(SystemExit):
        parse(["--image=x", f"--jobs={json.dumps({'env': env})}"])


def test_the_schema_and_the_operator_reserve_the_same_variables() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    env = schema["properties"]["jobs"]["properties"]["env"]["items"]["properties"]["name"]
    assert env["not"]["enum"] == sorted(RESERVED)


NO_VALUES = {
    "host": "the pod's address is the cluster's business: it listens on every one",
    "identity": "of the pod, by POD_NAME",
    "leader_election": "an upgrade has two operators for a moment, with one replica too",
}
"""Flags that the chart does not set, and why there are no values for them."""


def test_every_flag_is_set_by_the_chart_or_has_a_reason_not_to_be() -> None:
    flags = set(vars(parse(["--image=x"])))
    arguments = [argument for given in ({}, everything()) for argument in container(render(given))["args"]]
    rendered = {argument.partition("=")[0].removeprefix("--").replace("-", "_") for argument in arguments}
    assert {name.removeprefix("no_") for name in rendered} == flags - set(NO_VALUES)


@pytest.mark.parametrize(("part", "folder"), [("image", "operator"), ("pipelineImage", "pipeline")])
def test_an_image_that_is_not_named_is_asked_for_before_anything_is_installed(part: str, folder: str) -> None:
    with pytest.raises(Refused) as refused:
        render({part: {"repository": ""}})
    assert f"{part}.repository is not set: build images/{folder}/Containerfile" in str(refused.value)
    assert f"--set {part}.repository=registry.example.com/compression-{folder}" in str(refused.value)
    assert (REPOSITORY / "images" / folder / "Containerfile").is_file()


@pytest.mark.parametrize("part", ["image", "pipelineImage"])
def test_a_digest_takes_the_place_of_the_tag(part: str) -> None:
    digest = "sha256:" + "0" * 64
    found = container(render({part: {"repository": "r.example:5000/x", "tag": "1", "digest": digest}}))
    image = found["image"] if part == "image" else parse(found["args"]).image
    assert image == f"r.example:5000/x@{digest}"


def test_images_are_of_the_charts_version() -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    found = container(render({}))
    assert found["image"].endswith(f":{version}")
    assert parse(found["args"]).image.endswith(f":{version}")
