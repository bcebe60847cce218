"""Every Kubernetes minor that the chart admits takes the CRD: each CEL rule compiles there, within the budget."""

import re
import subprocess

import pytest
import yaml
from tests.cluster import build
from tests.packaging.helm import CHART

CRD = CHART / "files" / "compressionruns.modelcompression.io.yaml"


DEAR = "self.students.all(a, " * 5 + "true" + ")" * 5
"""A rule that looks at 32 ** 5 students, for all that the server knows."""


def floor() -> int:
    """The oldest minor of Kubernetes that the chart admits."""
    admitted = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    found = re.fullmatch(r">=1\.(\d+)\.0-0", admitted)
    assert found is not None, f"{admitted} has no floor that this test understands"
    return int(found[1])


def newest() -> int:
    """The newest minor whose libraries the judge is built of."""
    found = re.search(r"k8s\.io/apiserver v0\.(\d+)\.", build.CRD_RULES.pins())
    assert found is not None
    return int(found[1])


def refused(crd: str, *minors: int) -> list[str]:
    """What servers of these minors refuse of a CRD."""
    build.build((build.CRD_RULES,), print)
    command = [build.CRD_RULES.built() / "crd-rules", *(f"1.{minor}" for minor in minors)]
    done = subprocess.run(command, input=crd, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or done.stdout, done.stderr
    return done.stdout.splitlines()


def test_every_minor_that_the_chart_admits_takes_the_crd() -> None:
    assert floor() < newest()
    assert refused(CRD.read_text(), *range(floor(), newest() + 1)) == []


def test_the_floor_is_no_higher_than_it_must_be() -> None:
    """And the judge sees what an older server lacks: its strings have no `format`."""
    faults = refused(CRD.read_text(), floor() - 1)
    assert faults and all("undeclared reference to 'format'" in fault for fault in faults)


@pytest.mark.parametrize(
    ("rule", "minor", "words"),
    [
        ("self.students.transformList(i, s, i).size() > 0", 32, "undeclared reference"),
        ("isIP(self.backend)", 30, "undeclared reference"),
        (DEAR, 34, "budget"),
        ("self.nothing > 0", 34, "undefined field"),
    ],
)
def test_the_judge_refuses_what_a_server_refuses(rule: str, minor: int, words: str) -> None:
    """Libraries come a minor after they are there: a cluster may go back by one. And dear rules are refused."""
    crd = yaml.safe_load(CRD.read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["x-kubernetes-validations"].append({"rule": rule, "message": "x"})
    faults = refused(yaml.safe_dump(crd), minor)
    assert len(faults) >= 1 and words in " ".join(faults)
