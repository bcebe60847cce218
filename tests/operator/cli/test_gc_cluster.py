"""`compression gc --namespace`: the runs of a cluster are asked of its API server, and all of them or nothing."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_server import Answer, served

from compression_operator.cli.__main__ import main

USED, UNUSED = (f"prepare-{digit * 32}" for digit in "12")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two old artifacts."""
    for name in (USED, UNUSED):
        folder = tmp_path / "store" / "artifacts" / name
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    return tmp_path / "store"


def a_run(name: str, **status: Any) -> dict[str, Any]:
    body = yaml.safe_load((Path(__file__).parents[1] / "valid" / "minimal.yaml").read_text())
    return body | {"metadata": {"name": name, "namespace": "research"}, "status": status}


USER = a_run("user", steps=[{"name": "prepare", "phase": "prepare", "state": "Succeeded", "artifact": USED}])


def call(store: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """The exit code of gc on a cluster that answers so, and what was asked of it."""
    with served() as (server, url):
        server.answer = lambda method, path: answer
        config = store.parent / "kubeconfig"
        context = {"name": "x", "context": {"cluster": "x", "user": "x"}}
        clusters, users = [{"name": "x", "cluster": {"server": url}}], [{"name": "x", "user": {}}]
        body = {"current-context": "x", "contexts": [context], "clusters": clusters, "users": users}
        config.write_text(yaml.safe_dump(body))
        monkeypatch.setenv("KUBECONFIG", str(config))
        code = main(["gc", "--store", str(store), "--namespace", "research"])
        return code, [path.partition("?")[0] for _, path, _, _ in server.asked]


def test_what_a_run_of_the_cluster_refers_to_stays(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"metadata": {"resourceVersion": "7"}, "items": [USER]}
    code, asked = call(store, (200, page, {}), monkeypatch)
    assert (code, asked) == (0, ["/apis/modelcompression.io/v1alpha1/namespaces/research/compressionruns"])
    assert [path.name for path in (store / "artifacts").iterdir()] == [USED]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((403, {"kind": "Status", "reason": "Forbidden", "message": "no"}, {}), "the cluster's runs cannot be listed"),
        ((200, {"metadata": {"resourceVersion": "7"}, "items": [USER, {"spec": {}}]}, {}), "cannot be read"),
        ((200, {"metadata": {"resourceVersion": "7"}, "items": []}, {}), "no run is known"),
    ],
)
def test_nothing_goes_where_not_all_runs_are_known(
    answer: Answer, sentence: str, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(store, answer, monkeypatch)[0] == 2
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in (store / "artifacts").iterdir()) == [USED, UNUSED]
