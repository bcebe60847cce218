"""The heartbeat: one job at a time per step, whatever the volume and the others do."""

import errno
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from launching import FINGERPRINT, Launch
from tests.support.waiting import until

from compression_operator.local.store_gc import working
from compression_pipeline.artifact import Store
from compression_pipeline.launcher import heartbeat as heartbeats
from compression_pipeline.launcher.heartbeat import Heartbeat

HOUR = 3600.0


def pulse(folder: Path, job: str) -> Heartbeat:
    return Heartbeat(folder, job, token=uuid.uuid4().hex, probe=folder)


def held_elsewhere(folder: Path, *, seconds_ago: float) -> Path:
    """A heartbeat of a job on another machine."""
    other = pulse(folder, "other/prune/1")
    draft = folder / f".heartbeat.{other.me.token}"
    draft.write_text(other.me.model_copy(update={"machine": "node-7 boot pid"}).model_dump_json(by_alias=True))
    then = time.time() - seconds_ago
    os.utime(draft, (then, then))
    return draft.replace(folder / "heartbeat")  # whole: half of one would be nobody's


def test_the_first_job_holds_the_heartbeat_and_the_second_gets_it_when_it_is_released(tmp_path: Path) -> None:
    first, second = pulse(tmp_path, "a/prune/1"), pulse(tmp_path, "b/prune/1")
    assert first.claim() is None
    holder = second.claim()
    assert holder == first.me
    assert str(holder).startswith("a/prune/1 (host ")
    second.release()  # not its own: stays
    assert second.claim() == first.me
    first.release()
    assert second.claim() is None


def test_a_heartbeat_that_beats_elsewhere_is_respected_and_one_that_has_stopped_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "STALE_SECONDS", HOUR)  # however long this process is held up itself
    mine = pulse(tmp_path, "a/prune/1")
    held_elsewhere(tmp_path, seconds_ago=HOUR / 6)
    holder = mine.claim()
    assert holder is not None
    assert holder.job == "other/prune/1"
    held_elsewhere(tmp_path, seconds_ago=HOUR + 1)
    assert mine.claim() is None


def test_a_volume_without_hard_links_has_heartbeats_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first, second = pulse(tmp_path, "a/prune/1"), pulse(tmp_path, "b/prune/1")
    assert first.claim() is None
    assert second.claim() == first.me
    first.release()
    assert second.claim() is None
    assert [path.name for path in tmp_path.iterdir()] == ["heartbeat"]


def test_jobs_that_come_and_go_at_once_never_miss_the_folder(tmp_path: Path) -> None:
    """Each removes the folder when it leaves, if it is empty; here it mostly is."""

    def come_and_go(number: int) -> None:
        mine = Heartbeat(tmp_path / "step", f"r/prune/{number}", token=f"{number}", probe=tmp_path)
        had = 0
        while had < 100:  # else each waits for another
            had += mine.claim() is None
            mine.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    assert not (tmp_path / "step").exists()


def test_a_folder_that_is_removed_again_and_again_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = iter([True] * 20)
    make = heartbeats.make_folder

    def made_and_removed(folder: Path) -> None:
        make(folder)
        if next(gone, False):
            folder.rmdir()

    monkeypatch.setattr(heartbeats, "make_folder", made_and_removed)
    mine = pulse(tmp_path / "step", "r/prune/1")
    assert mine.claim() is None and mine.there


def test_gc_sees_who_works(tmp_path: Path) -> None:
    """It can't import this heartbeat: it belongs to the control plane."""
    store = Store(tmp_path)
    folder = store.attempt_folder(FINGERPRINT, 1, "ab")
    launch = "ab"
    mine = Heartbeat(folder.parent, "r/prune-width/1/7a3f", token=launch, probe=folder)
    now = datetime.now(UTC)
    assert list(working(tmp_path, now)) == []
    assert mine.claim() is None
    assert list(working(tmp_path, now)) == [(folder.parent, "r/prune-width/1")]
    assert list(working(tmp_path, now + timedelta(hours=2))) == []


def test_a_damaged_heartbeat_is_taken(tmp_path: Path) -> None:
    (tmp_path / "heartbeat").write_text("{")
    assert pulse(tmp_path, "a/prune/1").claim() is None


def test_beats_touch_the_file_and_notice_who_took_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_SECONDS", 0.0)
    mine = pulse(tmp_path, "a/prune/1")
    assert mine.claim() is None
    path = tmp_path / "heartbeat"
    os.utime(path, (1, 1))
    assert mine.beat() is None
    assert path.stat().st_mtime > 1
    held_elsewhere(tmp_path, seconds_ago=0)
    taker = mine.beat()
    assert taker is not None
    assert taker.job == "other/prune/1"
    mine.release()
    assert path.exists()


def test_a_job_whose_step_was_taken_over_stops(launch: Launch) -> None:
    launched = launch(
        """
        def run(job, context):
            (here / "started").touch()
            while not context.stop_requested():
                time.sleep(0.01)
            from compression_pipeline.errors import Interrupted
            raise Interrupted("stopped")
        """
    )
    until((launch.folder / "started").exists, "started")
    held_elsewhere(launch.heartbeat.parent, seconds_ago=0)
    assert launched.wait() == 143
    assert "other/prune/1 (host node-7" in launched.termination["message"]
    assert "took over this step" in launched.termination["message"]
    assert launch.heartbeat.exists()
