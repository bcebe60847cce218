"""A CRD of an older version on a real API server, which drops what it does not know of a status."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from api import CRD, Api
from kubelets import NOWHERE
from operators import Namespace
from tests.support.matchers import has_condition
from tests.support.waiting import until


@pytest.fixture
def older_crd(api: Api, tmp_path: Path) -> Iterator[None]:
    """The CRD as it was before a run said who manages it, until the test ends."""
    body = yaml.safe_load(CRD.read_text())
    status = body["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    step = status["steps"]["items"]["properties"]
    del status["managedBy"], step["remakes"], step["progress"]["properties"]["time"]
    file = tmp_path / "older.yaml"
    file.write_text(yaml.safe_dump(body))
    api.apply_crd(file)
    try:
        yield
    finally:
        api.apply_crd(CRD)


@pytest.mark.usefixtures("older_crd")
def test_nothing_is_made_under_an_older_crd_until_it_is_upgraded(namespace: Namespace, api: Api) -> None:
    operator = namespace.start("localhost/none:1", "--resync-seconds", "1")
    try:
        namespace.submit(jobTemplate=NOWHERE)
        until(lambda: has_condition(namespace.status(), "Degraded", "True", reason="CRDOutdated"), "the condition")
        said = "the CRD in this cluster is older than this operator: it has no status.managedBy"
        for words in (said, "apply crds/ of version"):
            assert has_condition(namespace.status(), "Degraded", says=words)
        until(lambda: [event for event in namespace.events() if event["reason"] == "CRDOutdated"], "the Event")
        until(lambda: "it has no status.managedBy, status.steps[]." in operator.ask("/readyz")[1], "/readyz to tell")
        assert operator.ask("/readyz")[0] == 503 and "compression_crd_outdated 1.0" in operator.ask("/metrics")[1]
        assert namespace.jobs() == [] and "managedBy" not in namespace.status()
        api.apply_crd(CRD)
        until(namespace.jobs, "the job, once the CRD is upgraded")
        until(lambda: has_condition(namespace.status(), "Degraded", "False"), "the problem to be over")
        operator.wait_ready()
        assert len(namespace.jobs()) == 1 and namespace.status()["managedBy"]
        assert "compression_crd_outdated 0.0" in operator.ask("/metrics")[1]
    finally:
        operator.kill()
