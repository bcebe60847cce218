"""What is adopted is what was published: a file overwritten at equal size is noticed, and the artifact made anew."""

import os
from pathlib import Path

import pytest
from launching import FINGERPRINT, NAME, PUBLISH, Launch

from compression_pipeline.artifact import Store
from compression_pipeline.store import verified


def test_a_damaged_artifact_is_set_aside_and_made_anew(launch: Launch) -> None:
    assert launch(PUBLISH).wait() == 0
    weights = launch.store / "artifacts" / NAME / "weights"
    again = launch(PUBLISH, attempt=2)
    assert again.wait() == 0
    assert again.termination["result"]["cached"]
    times = weights.stat()
    weights.write_text("y")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    anew = launch(PUBLISH, attempt=3)
    assert anew.wait() == 0
    assert not anew.termination["result"].get("cached")
    assert f"{weights} is not what was published" in anew.events("warning")[0]["message"]
    assert weights.read_text() == "x"
    assert len(list(weights.parent.parent.glob(f".damaged-{NAME}-*"))) == 1


def test_what_a_step_made_under_another_key_is_adopted_without_its_note_which_is_written_again(launch: Launch) -> None:
    key = "f" * 32
    with Store(launch.store).draft("prune", key) as draft:
        draft.publish(config={"fingerprint": FINGERPRINT}, inputs={}, result={"parameters": 7})
    launched = launch("def run(job, context): raise AssertionError", key=key)
    assert launched.wait() == 0, launched.errors
    assert launched.termination["result"]["parameters"] == 7
    note = Store(launch.store).published(FINGERPRINT)
    assert note is not None and (note.artifact, note.result) == (f"prune-{key}", {"parameters": 7})


def test_what_was_verified_is_read_again_only_where_it_looks_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression_pipeline.store.watched.SMALL", 0)
    store, read = Store(tmp_path), list[int]()
    with store.draft("prune", "0" * 32) as draft:
        (draft.path / "weights").write_text("weights")
        made = draft.publish(config={}, inputs={}, result={})
    digests = {name: record.sha256 for name, record in made.manifest.files.items()}

    def fault() -> str | None:
        return verified.fault(tmp_path, made.name, digests, lambda done, total: read.append(done))

    assert (fault(), fault(), read) == (None, None, [7])
    os.utime(made.path / "weights", (1, 1))
    assert (fault(), read) == (None, [7, 7])
    (made.path / "weights").write_text("WEIGHTS")
    assert fault() == fault() == "weights"
