"""A real cluster for the tests in this folder, with the CRD and the stand-in image in it.

`COMPRESSION_CLUSTER_STATE` names the state folder of a cluster to use or to start (see tests/cluster); a cluster that
was up before stays up. Without it an existing KUBECONFIG is honoured, unless runs live there: these tests replace the
CRD. Where pods cannot run, the tests that need them are skipped, and say why.
"""

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import standin_image
from api import CRD, RUNS, Api
from operators import Namespace
from telling import what_there_is
from tests.cluster.down import down
from tests.cluster.images import import_archive
from tests.cluster.paths import State
from tests.cluster.up import Cluster, up
from tests.packaging.base import CannotBuild
from tests.packaging.image import operator_image

TIMEOUT_SECONDS = 1800
"""Of a test with its fixtures, on a machine that has much else to do; what is waited for has bounds of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.cluster)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed tells what there was in its namespace: it is removed before anybody can look."""
    report = yield
    place = getattr(item, "funcargs", {}).get("namespace")
    if report.when == "call" and report.failed and isinstance(place, Namespace):
        report.sections += what_there_is(place, _state())
    return report


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


def _state() -> State:
    given = os.environ.get("COMPRESSION_CLUSTER_STATE")
    return State.at(Path(given) if given else None)


@pytest.fixture(scope="session")
def state() -> State:
    return _state()


@pytest.fixture(scope="session")
def cluster(state: State) -> Iterator[Cluster]:
    """A cluster with the CRD installed."""
    found = up(state, _say, honour_kubeconfig="COMPRESSION_CLUSTER_STATE" not in os.environ)
    try:
        administrator = Api(found.kubeconfig)
        if found.bin is None and (runs := administrator.get(f"{RUNS}/compressionruns")) and runs["items"]:
            pytest.skip(
                f"KUBECONFIG names {found.kubeconfig}, a cluster with {len(runs['items'])} CompressionRuns, and these "
                "tests replace their CRD: unset KUBECONFIG to have a cluster started here"
            )
        administrator.apply_crd(CRD)
        yield found
    finally:
        if not found.already:
            down(state, _say)


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Api:
    """The API server, as its administrator."""
    return Api(cluster.kubeconfig)


@pytest.fixture(scope="session")
def pods(cluster: Cluster, state: State, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Real pods can run; the name of the stand-in's image."""
    if not cluster.pods or cluster.bin is None:
        pytest.skip(f"no pods here: {'; '.join(cluster.left_out) or 'images cannot be imported into this cluster'}")
    import_archive(state, standin_image.write(tmp_path_factory.mktemp("image") / "standin.tar"))
    return standin_image.NAME


@pytest.fixture(scope="session")
def installable(cluster: Cluster, state: State) -> None:
    """Real pods can run, and the operator's image, built as users build it, lies in the cluster."""
    if not cluster.pods or cluster.bin is None:
        pytest.skip(f"no pods here: {'; '.join(cluster.left_out) or 'images cannot be imported into this cluster'}")
    try:
        import_archive(state, operator_image(_say))
    except CannotBuild as error:
        pytest.skip(f"the operator's image cannot be built here: {error}")


@pytest.fixture
def namespace(api: Api, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Namespace]:
    """A namespace of the test's own with a claim for the store, and the operator's identity in it."""
    place = Namespace.create(api, request.node.name, tmp_path)
    try:
        yield place
    finally:
        place.remove()


@pytest.fixture
def another(api: Api, tmp_path: Path) -> Iterator[Namespace]:
    """A second namespace."""
    folder = tmp_path / "another"
    folder.mkdir()
    place = Namespace.create(api, "another", folder)
    try:
        yield place
    finally:
        place.remove()
