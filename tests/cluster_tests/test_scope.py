"""One namespace or all of them; and how often a running step's progress is written."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from api import Api, wait_for
from kubelets import NOWHERE, kubelet
from operators import FINAL, Namespace, step_of
from proxy import proxy


@pytest.fixture
def another(api: Api, tmp_path: Path) -> Iterator[Namespace]:
    folder = tmp_path / "another"
    folder.mkdir()
    place = Namespace.create(api, "another", folder)
    try:
        yield place
    finally:
        place.remove()


def test_an_operator_of_one_namespace_leaves_the_others_alone(namespace: Namespace, another: Namespace) -> None:
    with namespace.operator(), kubelet(namespace):
        another.submit(jobTemplate=NOWHERE)
        namespace.submit(jobTemplate=NOWHERE)
        assert namespace.wait_phase(*FINAL)["phase"] == "Succeeded"
    assert not another.jobs() and not another.status()


def test_an_operator_of_the_whole_cluster(namespace: Namespace, another: Namespace) -> None:
    namespace.permit_everywhere()
    with namespace.operator(everywhere=True), kubelet(namespace), kubelet(another):
        for place in (namespace, another):
            place.submit(jobTemplate=NOWHERE)
        for place in (namespace, another):
            assert place.wait_phase(*FINAL)["phase"] == "Succeeded"
            assert len(place.jobs()) == 8


def test_progress_is_written_at_a_bounded_rate(namespace: Namespace, api: Api, pods: str) -> None:
    """The step speaks ten times a second; its status is written once in --progress-seconds at most."""
    with proxy(api) as before, namespace.operator(pods, "--progress-seconds", "4", server=before.url):
        one = [{"name": "width", "prune": {"hiddenSize": 64}}]
        namespace.submit(behaviour={"prepare": {"steps": 250, "seconds": 0.1}}, finetune=None, students=one)
        namespace.wait_step("prepare", "Running")

        def writes() -> int:
            return sum(a.verb == "update" and a.resource == "compressionruns/status" for a in list(before.asked))

        began, written = time.monotonic(), writes()
        wait_for(lambda: step_of(namespace.status(), "prepare").get("progress", {}).get("step", 0) > 120, "progress")
        took, written = time.monotonic() - began, writes() - written
        progress = step_of(namespace.status(), "prepare")["progress"]
        logs = [a for a in before.asked if a.resource == "pods/log"]
        namespace.edit(suspend=True)
    assert 1 <= written <= took / 4 + 2 and len(logs) <= took / 4 + 3, (written, len(logs), took)
    assert progress["totalSteps"] == 250 and progress["loss"] < 4 and progress["tokensPerSecond"] == 1000
