"""The chart's values: each is documented and does something, and wrong ones are refused by name."""

import copy
import json
from typing import Any

import pytest
import yaml
from charts.document import documented, values
from tests.packaging.helm import CHART, IMAGES, Body, Refused, everything, kinds, render

from compression_operator.cluster.service import DRAIN_SECONDS, TELLING_SECONDS
from compression_operator.kube.leader import RELEASE_SECONDS
from compression_operator.kube.watching.thread import LEAVING_SECONDS

VALUES: Body = yaml.safe_load((CHART / "values.yaml").read_text())
FREE = {  # objects that Kubernetes defines, not the chart
    "resources",
    "podSecurityContext",
    "securityContext",
    "nodeSelector",
    "affinity",
    "serviceAccount.annotations",
    "service.annotations",
    "podAnnotations",
    "podLabels",
    "commonLabels",
    "metrics.serviceMonitor.labels",
    "jobs.labels",
    "jobs.annotations",
}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and path not in FREE:
        return {
            name: leaf
            for key, child in value.items()
            for name, leaf in leaves(child, f"{path}.{key}"[not path :]).items()
        }
    return {path: value}


def changed(base: Body, path: str, value: Any) -> Body:
    result = copy.deepcopy(base)
    *above, last = path.split(".")
    target = result
    for key in above:
        target = target.setdefault(key, {})
    target[last] = value
    return result


def test_the_readme_lists_every_value() -> None:
    readme = (CHART / "README.md").read_text()
    assert documented(readme, values((CHART / "values.yaml").read_text())) == readme, "run `make crds`"


# Each value of the chart, with another than its default, does something: what does nothing must not be offered.
ALTERNATIVES: Body = leaves(everything()) | {
    "image.digest": "sha256:" + "a" * 64,
    "pipelineImage.digest": "sha256:" + "b" * 64,
    "nameOverride": "squeezer",
}


@pytest.fixture(scope="module")
def defaults_and_parts() -> tuple[Body, list[Body]]:
    """The defaults with the optional parts on, and what they render to."""
    base = changed(VALUES, "networkPolicy.enabled", True)
    for part, image in IMAGES.items():
        base = changed(base, f"{part}.repository", image["repository"])
    base = changed(base, "serviceAccount.name", "given")
    base = changed(base, "gc.stores", [{"namespace": "research", "claimName": "models"}])
    base = changed(base, "metrics.serviceMonitor.enabled", True)
    base = changed(base, "metrics.secure.enabled", True)
    base = changed(base, "metrics.secure.certificateSecret", "operator-tls")
    return base, render(base)


@pytest.mark.parametrize("path", leaves(VALUES))
def test_every_value_does_something(path: str, defaults_and_parts: tuple[Body, list[Body]]) -> None:
    base, rendered = defaults_and_parts
    default = leaves(base)[path]
    other = not default if isinstance(default, bool) else ALTERNATIVES[path]
    assert other != default, f"give {path} another value in values/everything.yaml"
    assert render(changed(base, path, other)) != rendered


WRONG: dict[str, tuple[Any, str]] = {
    "replicaCount": (2, "additional properties 'replicaCount' not allowed"),
    "replicas": ("two", "at '/replicas': got string, want integer"),
    "image.name": ("x", "additional properties 'name' not allowed"),
    "image.tag": (1.0, "at '/image/tag': got number, want string"),
    "image.digest": ("abc", "at '/image/digest': 'abc' does not match pattern"),
    "image.pullPolicy": ("Sometimes", "'Always', 'IfNotPresent', 'Never'"),
    "imagePullSecrets": (["registry"], "at '/imagePullSecrets/0': got string, want object"),
    "takeOver": (["gone"], "at '/takeOver/0': 'gone' does not match pattern"),
    "watchNamespaces": (["Team_A"], "at '/watchNamespaces/0': 'Team_A' does not match pattern"),
    "crds.keep": (False, "additional properties 'keep' not allowed"),
    "operator.workers": (0, "at '/operator/workers': minimum: got 0, want 1"),
    "operator.missedSeconds": (1, "at '/operator/missedSeconds': minimum: got 1, want 10"),
    "operator.progressSeconds": (0.5, "at '/operator/progressSeconds': got number, want integer"),
    "image.repository": ("a b", "at '/image/repository': 'a b' does not match pattern"),
    "jobs.env": ([{"name": "HF_TOKEN", "value": "x"}], "at '/jobs/env/0/name': 'not' failed"),
    "jobs.gpu.resource": ("gpu", "at '/jobs/gpu/resource': 'gpu' does not match pattern"),
    "jobs.inheritLabels": (["a*b"], "at '/jobs/inheritLabels/0': 'a*b' does not match pattern"),
    "jobs.user.ids": ("None", "at '/jobs/user/ids': value must be one of 'Fixed', 'Cluster'"),
    "gc.stores": ([{"namespace": "a"}], "at '/gc/stores/0': missing property 'claimName'"),
    "gc.olderThan": ("a week", "at '/gc/olderThan': 'a week' does not match pattern"),
    "operator.logFormat": ("xml", "at '/operator/logFormat': value must be one of 'json', 'text'"),
    "operator.logLevel": ("trace", "value must be one of 'debug', 'info', 'warning', 'error'"),
    "metrics.serviceMonitor.interval": ("fast", "at '/metrics/serviceMonitor/interval': 'fast' does not match"),
    "networkPolicy.metricsFrom": ([{}], "at '/networkPolicy/metricsFrom/0': minProperties: got 0, want 1"),
    "podDisruptionBudget.maxUnavailable": ("one", "at '/podDisruptionBudget/maxUnavailable'"),
    "resources.limit": ({}, "additional properties 'limit' not allowed"),
    "service.port": (0, "at '/service/port': minimum: got 0, want 1"),
    "commonLabels": ({"a": "b c"}, "at '/commonLabels/a': 'b c' does not match"),
    "tolerations": ([{"keys": "x"}], "additional properties 'keys' not allowed"),
    "affinity.podAffinities": ({}, "additional properties 'podAffinities' not allowed"),
    "terminationGracePeriodSeconds": (19, "at '/terminationGracePeriodSeconds': minimum: got 19, want 20"),
    "fullnameOverride": ("Upper", "at '/fullnameOverride': 'Upper' does not match"),
}


@pytest.mark.parametrize("path", WRONG)
def test_wrong_values_are_refused_by_name(path: str) -> None:
    value, sentence = WRONG[path]
    with pytest.raises(Refused) as refused:
        render(changed({}, path, value))
    assert sentence in str(refused.value)


def test_the_least_grace_period_is_enough_to_hand_over() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    takes = DRAIN_SECONDS + TELLING_SECONDS + RELEASE_SECONDS + LEAVING_SECONDS
    assert takes < schema["properties"]["terminationGracePeriodSeconds"]["minimum"] <= 2 * takes


@pytest.mark.parametrize(
    ("interval", "timeout", "refused"),
    [
        ("30s", "31s", True),
        ("30s", "1m", True),
        ("500ms", "1s", True),
        ("1m30s", "91s", True),
        ("30s", "30s", False),
        ("1m30s", "90s", False),
        ("1d", "23h", False),
    ],
)
def test_a_scrape_may_not_take_longer_than_the_time_between_two(interval: str, timeout: str, refused: bool) -> None:
    given = {"metrics": {"serviceMonitor": {"enabled": True, "interval": interval, "scrapeTimeout": timeout}}}
    if not refused:
        assert "ServiceMonitor" in kinds(render(given))
        return
    with pytest.raises(Refused) as found:
        render(given)
    words = f"metrics.serviceMonitor.scrapeTimeout ({timeout}) is longer than metrics.serviceMonitor.interval"
    assert f"{words} ({interval})" in str(found.value)


def test_every_object_of_the_chart_is_closed() -> None:
    for path in {path.rpartition(".")[0] for path in leaves(VALUES)}:
        unknown = f"{path}.unheardOf".removeprefix(".")
        with pytest.raises(Refused, match="additional properties 'unheardOf' not allowed"):
            render(changed({}, unknown, 1))
