"""Renders the chart with the helm that the test cluster is built with."""

import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from tests.cluster import build

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "compression-operator"
EVERYTHING = Path(__file__).parent / "values" / "everything.yaml"

Body = dict[str, Any]


IMAGES: Body = {
    "image": {"repository": "registry.example/operator-of-tests"},
    "pipelineImage": {"repository": "registry.example/pipeline-of-tests"},
}
"""The values that have no default."""


class Refused(Exception):
    """helm did not render the chart; its sentence."""


@cache
def helm() -> Path:
    """The program; built (once, into the cache) where it is missing."""
    build.build((build.HELM,), print)
    return build.HELM.built() / "helm"


def with_images(values: Mapping[str, Any]) -> Body:
    """The values, with a repository for each image that names none."""
    return {**values, **{name: {**IMAGES[name], **values.get(name, {})} for name in IMAGES}}


def everything() -> Body:
    """Values with every optional part on and nothing at its default."""
    return yaml.safe_load(EVERYTHING.read_text())


def render(
    values: Mapping[str, Any] | None = None,
    *,
    release: str = "compression-operator",
    namespace: str = "compression-system",
    chart: Path = CHART,
    api_versions: tuple[str, ...] = (),
) -> list[Body]:
    """The manifests of a release; images that are not given get names. Raises Refused."""
    command = [helm(), "template", release, chart, "--namespace", namespace, "--values", "-"]
    command += [f"--api-versions={version}" for version in api_versions]
    done = subprocess.run(
        command, input=yaml.safe_dump(with_images(values or {})), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Refused(done.stderr)
    documents = yaml.load_all(done.stdout, Loader=yaml.CSafeLoader)
    return [body for body in documents if body]


def only(bodies: list[Body], kind: str, name: str | None = None) -> Body:
    """The one object of a kind (and name)."""
    found = [body for body in bodies if body["kind"] == kind and name in (None, body["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}: {[body['metadata']['name'] for body in found]}"
    return found[0]


def pod(bodies: list[Body]) -> Body:
    """The template of the operator's pods."""
    return only(bodies, "Deployment")["spec"]["template"]


def container(bodies: list[Body]) -> Body:
    """The operator's container."""
    return pod(bodies)["spec"]["containers"][0]


def kinds(bodies: list[Body]) -> set[str]:
    """The kinds among them."""
    return {body["kind"] for body in bodies}
