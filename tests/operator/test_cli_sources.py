"""What of the user's files makes prepare run again: what it reads, and nothing that the run itself writes."""

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
