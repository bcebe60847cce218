"""A real cluster for the tests that install the chart: their own, because other tests replace the CRD of theirs."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.down import down
from tests.cluster.images import import_archive
from tests.cluster.paths import State
from tests.cluster.up import up
from tests.packaging.base import CannotBuild
from tests.packaging.image import operator_image
from tests.packaging.installed import Cluster

TIMEOUT_SECONDS = 3600
"""Of a test with its fixtures: whichever comes first has programs to build, and an image."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster that runs pods, with the operator's image imported."""
    state = State.at(Path(tempfile.mkdtemp(prefix="co-packaging-")))
    found = up(state, _say)
    try:
        if not found.pods or found.bin is None:
            pytest.skip(f"no pods here: {'; '.join(found.left_out) or 'images cannot be imported into this cluster'}")
        try:
            import_archive(state, operator_image(_say))
        except CannotBuild as error:
            pytest.skip(f"the operator's image cannot be built here: {error}")
        yield Cluster(found.kubeconfig, found.bin)
    finally:
        down(state, _say)
