"""The chart as a part of another one, which switches it on and off."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.packaging.helm import CHART, IMAGES, Body, container, helm, kinds

NAME = "compression-operator"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A platform's chart that has ours as a dependency with a condition."""
    folder = tmp_path_factory.mktemp("platform")
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    dependency = {"name": NAME, "version": version, "condition": f"{NAME}.enabled"}
    chart = {"apiVersion": "v2", "name": "platform", "version": "0.1.0", "dependencies": [dependency]}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart))
    shutil.copytree(CHART, folder / "charts" / NAME)
    return folder


def rendered(parent: Path, values: Body) -> list[Body]:
    done = subprocess.run(
        [helm(), "template", "platform", parent, "--namespace", "ops", "--values", "-"],
        input=yaml.safe_dump(values),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [body for body in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if body]


def test_a_platforms_chart_switches_it_on_and_off(parent: Path) -> None:
    shared = {"global": {"imageRegistry": "registry.example"}}
    on = rendered(parent, shared | {NAME: {"enabled": True, "replicas": 2, **IMAGES}})
    assert {"Deployment", "CustomResourceDefinition", "ClusterRole"} <= kinds(on)
    assert container(on)["image"].startswith(IMAGES["image"]["repository"])
    assert rendered(parent, shared | {NAME: {"enabled": False, **IMAGES}}) == []
    assert kinds(rendered(parent, {NAME: IMAGES})) == kinds(on), "the condition may be left out"
