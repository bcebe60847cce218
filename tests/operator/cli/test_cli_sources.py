"""What of the user's files makes prepare run again: what it reads, and nothing that the run itself writes."""

import json
from pathlib import Path

import pytest
from local_cli import REPORT, Bench

from compression_operator.cli import report


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "COMMAND", REPORT)


@pytest.mark.parametrize("shared", [False, True])
def test_a_work_directory_below_the_source_is_no_change_of_it(tmp_path: Path, shared: bool) -> None:
    bench = Bench(tmp_path)
    bench.write(dataset={"source": "file:.", "sequenceLength": 64})
    store = ["--store", str(tmp_path / "shared")] if shared else []
    assert bench.run(*store) == 0
    count = len(bench.starts())
    assert bench.run(*store) == 0
    assert bench.starts()[count:] == []
    (tmp_path / "more.txt").write_text("There was more.")
    assert bench.run(*store) == 0
    assert bench.starts()[count:] == ["prepare 2"]


def test_files_of_tasks_that_change_run_tasks_alone_again(tmp_path: Path) -> None:
    """Prepare ran again, too, and asked the Hub anew for a teacher without a revision."""
    bench = Bench(tmp_path)
    questions = tmp_path / "own" / "test.jsonl"
    questions.parent.mkdir()
    questions.write_text("{}")
    bench.write(evaluate={"tasks": [{"name": "own", "source": "file:own"}]})
    assert bench.run() == 0
    count = len(bench.starts())
    assert bench.run() == 0
    assert bench.starts()[count:] == []
    questions.write_text('{"question": "Why?"}')
    assert bench.run() == 0
    assert bench.starts()[count:] == ["tasks 2"]


@pytest.mark.parametrize("workdir", ["work", "."])
def test_what_the_user_keeps_in_the_work_directory_is_looked_at(tmp_path: Path, workdir: str) -> None:
    bench = Bench(tmp_path)
    bench.file = bench.file.rename(tmp_path / "manifest.yaml")
    bench.workdir = tmp_path / workdir
    bench.store = bench.workdir / "store"
    mine = bench.workdir / "mine"
    (mine / "teacher").mkdir(parents=True)
    files = mine / "train.txt", mine / "teacher" / "config.json"
    for file in files:
        file.write_text("as it was")
    place = mine.relative_to(tmp_path)
    bench.write(
        teacher={"model": f"file:{place}/teacher"}, dataset={"source": f"file:{place}/*.txt", "sequenceLength": 64}
    )
    assert bench.run() == 0
    for number, file in enumerate(files, start=2):
        count = len(bench.starts())
        assert bench.run() == 0
        assert bench.starts()[count:] == []
        file.write_text(f"written for the {number}. time")
        assert bench.run() == 0
        assert bench.starts()[count:] == [f"prepare {number}"]


def test_prepare_is_told_of_all_that_commands_write_in_the_work_directory(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.run() == 0
    artifact = bench.store / "artifacts" / bench.steps()["prepare"]["artifact"]
    told = json.loads((artifact / "manifest.json").read_text())["config"]["aside"]
    assert set(told) == {str(path) for path in bench.workdir.iterdir()}


def test_a_run_that_has_succeeded_does_not_ask_whether_a_branch_has_moved(tmp_path: Path) -> None:
    """As on a cluster, where a finished run is planned again only when it is edited."""
    bench, text = Bench(tmp_path), {"source": "hf://c/d", "sequenceLength": 64}
    bench.write(teacher={"model": "hf://a/b"}, dataset=text)
    assert bench.run() == 0
    count = len(bench.starts())
    assert bench.run() == 0
    assert bench.starts()[count:] == []
    bench.write(teacher={"model": "hf://a/b", "revision": "f" * 40}, dataset=text)
    assert bench.run() == 0
    assert bench.starts()[count:] == ["prepare 2"], "whose content turns out to be what it was"


def test_sources_of_the_hub_give_one_fingerprint_here_and_on_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path)
    bench.write(
        teacher={"model": "hf://a/b"},
        dataset={"source": "hf://c/d", "sequenceLength": 64},
        storage={"persistentVolumeClaim": {"claimName": "store"}},
        phases={"finetune": {"gpusPerNode": 4}, "distill": {"gpusPerNode": 4}},
    )

    def prepare(*options: str) -> str:
        assert bench.call("plan", bench.file, *options) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("prepare"))

    assert prepare("--workdir", str(bench.workdir)) == prepare("--cluster")
