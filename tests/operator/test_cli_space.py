"""A step for which the disk has no room, and one that needs none."""

import shutil
from pathlib import Path

import pytest
from local_cli import REPORT, Bench

from compression_operator.cli import report
from compression_pipeline.artifact import Published, Store


def test_a_prepare_that_is_published_needs_no_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "COMMAND", REPORT)
    bench = Bench(tmp_path, phases={"prepare": {"retryLimit": 0}})
    assert bench.run() == 0
    artifact = bench.steps()["prepare"]["artifact"]
    with (tmp_path / "text.txt").open("r+b") as text:  # more than the disk can hold, and takes none of it
        text.truncate(shutil.disk_usage(tmp_path).free + 10**12)
    capsys.readouterr()
    count = len(bench.starts())
    assert bench.run() == 1
    assert " free and this step needs about " in capsys.readouterr().err
    assert bench.starts()[count:] == []

    fingerprint = bench.steps()["prepare"]["fingerprint"]
    Store(bench.store).record_published(fingerprint, Published(artifact=f"{artifact}-gone"))
    assert bench.run() == 1
    assert bench.starts()[count:] == [], "what was published is there no more"
    Store(bench.store).record_published(fingerprint, Published(artifact=artifact))
    assert bench.run() == 0
    assert [start.split()[0] for start in bench.starts()[count:]] == ["prepare"]
