"""A disk without room: for a step, for one that needs none, for what is written of the run."""

import errno
import shutil
from pathlib import Path

import pytest
from local_cli import REPORT, Bench

from compression_operator.api.run import CompressionRun
from compression_operator.cli import report
from compression_operator.local.backend import LocalBackend
from compression_operator.local.workdir import Workdir
from compression_pipeline.artifact import Store
from compression_pipeline.store.published import Published


def test_a_prepare_that_is_published_needs_no_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "COMMAND", REPORT)
    bench = Bench(tmp_path)
    assert bench.run() == 0
    artifact = bench.steps()["prepare"]["artifact"]
    with (tmp_path / "text.txt").open("r+b") as text:  # more than the disk can hold, and takes none of it
        text.truncate(shutil.disk_usage(tmp_path).free + 10**12)
    capsys.readouterr()
    count = len(bench.starts())
    assert bench.run() == 1
    assert capsys.readouterr().err.count(" free and this step needs about ") == 1
    assert bench.steps()["prepare"]["failures"] == 0, "it is not tried again: nobody has made room"
    assert bench.starts()[count:] == []

    fingerprint = bench.steps()["prepare"]["fingerprint"]
    Store(bench.store).record_published(fingerprint, Published(artifact=f"{artifact}-gone"))
    assert bench.run() == 1
    assert bench.starts()[count:] == [], "what was published is there no more"
    Store(bench.store).record_published(fingerprint, Published(artifact=artifact))
    assert bench.run() == 0
    assert [start.split()[0] for start in bench.starts()[count:]] == ["prepare"]


def test_a_disk_that_fills_under_the_work_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    write = Workdir.write

    def full(workdir: Workdir, run: CompressionRun) -> None:
        finetune = run.status.step("finetune")
        if finetune is not None and finetune.attempt:
            raise OSError(errno.ENOSPC, "No space left on device", str(workdir.run_file))
        write(workdir, run)

    with monkeypatch.context() as patched:
        patched.setattr(Workdir, "write", full)
        assert bench.run() == 1
    said = capsys.readouterr().err
    told = f"gave up: cannot write in {bench.workdir / 'run.yaml'} (no space left on device); free some space there; "
    assert told in said and "resume from the last checkpoint" in said
    assert "Traceback" not in said
    assert bench.run() == 0
    assert "prepare 2" not in bench.starts()


@pytest.mark.parametrize("recorded", ["Pending", "Running"])
def test_a_failure_that_nobody_could_record_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, recorded: str
) -> None:
    """The job finds no room, says so, and ends; the status stays as it was. Who has made room runs again, once."""
    monkeypatch.setattr(report, "COMMAND", REPORT)
    bench = Bench(tmp_path)
    bench.behave(finetune={"fail": {"class": "UserError", "message": "the disk is full", "attempts": 9}})
    write = Workdir.write

    def full(workdir: Workdir, run: CompressionRun) -> None:
        finetune = run.status.step("finetune")
        if finetune is not None and (finetune.state == "Failed" or (recorded == "Pending" and finetune.attempt)):
            raise OSError(errno.ENOSPC, "No space left on device", str(workdir.run_file))
        write(workdir, run)

    with monkeypatch.context() as patched:
        patched.setattr(Workdir, "write", full)
        assert bench.run() == 1
    assert "gave up: " in capsys.readouterr().err
    bench.behave(finetune={})  # somebody has made room
    assert bench.run() == 0
    assert [start.split()[0] for start in bench.starts()[:3]] == ["prepare", "finetune", "finetune"]


def test_who_has_given_up_starts_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs comes to its end; the steps after it are for the next time."""
    monkeypatch.setattr(report, "COMMAND", REPORT)
    students = [{"name": "width", "prune": {"hiddenSize": 64}}, {"name": "depth", "prune": {"dropLayers": [2]}}]
    bench = Bench(tmp_path, students=students, maxParallelJobs=2)
    go, write, release = tmp_path / "go", Workdir.write, LocalBackend.release
    bench.behave(distill_width={"until": "/nowhere/go"}, distill_depth={"until": str(go), "ignore_sigterm": True})

    def full(workdir: Workdir, run: CompressionRun) -> None:
        width = run.status.step("distill-width")
        if width is not None and width.attempt:
            raise OSError(errno.ENOSPC, "No space left on device", str(workdir.run_file))
        write(workdir, run)

    def given_up(backend: LocalBackend) -> None:
        release(backend)
        go.touch()  # one job hears that it is to stop, the other comes to its end

    with monkeypatch.context() as patched:
        patched.setattr(Workdir, "write", full)
        patched.setattr(LocalBackend, "release", given_up)
        assert bench.run() == 1
    assert {"distill-width 1", "distill-depth 1"} <= {*bench.starts()} and go.exists()
    made = sorted(path.name for path in (bench.workdir / "jobs").iterdir())
    assert not [name for name in made if name.endswith("-2") or "export" in name], made
    bench.behave()
    assert bench.run() == 0
