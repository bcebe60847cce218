"""The store: whole artifacts or none, whatever goes wrong in between."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from compression_pipeline.artifact import Draft, Store
from compression_pipeline.config import ExitClass
from compression_pipeline.errors import MissingArtifact, TransientError, UserError
from compression_pipeline.faults import classify
from compression_pipeline.store.files import sha256
from compression_pipeline.store.published import Published
from compression_pipeline.store.watched import Selection, Watched

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing here comes no more."""
    monkeypatch.setattr("compression_pipeline.artifact.PATIENCE", 0)


def fill(draft: Draft, text: str = "weights") -> None:
    (draft.path / "model").mkdir()
    (draft.path / "model" / "weights.bin").write_text(text)
    (draft.path / "data").mkdir()
    (draft.path / "data" / "empty").touch()


def publish(store: Store, text: str = "weights", key: str = KEY):
    with store.draft("prune", key) as draft:
        fill(draft, text)
        return draft.publish(
            config={"a": 1}, inputs={"teacher": "prepare-x"}, result={"parameters": 3}, metrics={"m": 2.5}
        )


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*draft-*"))


def test_an_artifact_tells_what_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = publish(store)
    assert artifact.path == tmp_path / "artifacts" / f"prune-{KEY}"
    assert artifact.model == artifact.path / "model"
    assert artifact.data == artifact.path / "data"
    assert leftovers(tmp_path) == []
    found = store.open(f"prune-{KEY}")
    assert found == artifact
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest["config"] == {"a": 1}
    assert manifest["inputs"] == {"teacher": "prepare-x"}
    assert manifest["result"] == {"parameters": 3}
    assert manifest["metrics"] == {"m": 2.5}
    assert manifest["files"] == {
        "data/empty": {"size": 0, "sha256": sha256(artifact.path / "data" / "empty")},
        "model/weights.bin": {"size": 7, "sha256": sha256(artifact.path / "model" / "weights.bin")},
    }
    assert {"python", "torch", "megatron-core", "nvidia-modelopt", "transformers"} <= set(manifest["versions"])
    assert manifest["created"].endswith("Z")


def test_a_digest_told_while_writing_is_taken_unless_the_file_changed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.draft("prune", KEY) as draft:
        (draft.path / "a").write_text("aaa")
        draft.hashed(draft.path / "a", "told")
        (draft.path / "b").write_text("bbb")
        draft.hashed(draft.path / "b", "old")
        (draft.path / "b").write_text("longer")
        files = draft.publish(config={}, inputs={}, result={}).manifest.files
    assert files["a"].sha256 == "told"
    assert files["b"].sha256 == sha256(tmp_path / "artifacts" / f"prune-{KEY}" / "b")


def test_what_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.draft("prune", KEY) as draft:
        fill(draft)
        _ = 1 / 0
    assert leftovers(tmp_path) == []
    assert store.find(f"prune-{KEY}") is None


def test_the_loser_of_a_race_adopts_the_winner(tmp_path: Path) -> None:
    stores = [Store(tmp_path) for _ in range(8)]
    ready = threading.Barrier(len(stores))
    found: list[str] = []

    def race(store: Store, number: int) -> None:
        with store.draft("prune", KEY) as draft:
            fill(draft, f"weights of {number}")
            ready.wait()
            artifact = draft.publish(config={}, inputs={}, result={"by": number})
        assert (artifact.path / "model" / "weights.bin").read_text() == f"weights of {artifact.manifest.result['by']}"
        found.append(artifact.manifest.model_dump_json())

    threads = [threading.Thread(target=race, args=(store, n)) for n, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(stores)
    assert len(set(found)) == 1
    assert leftovers(tmp_path) == []


def test_a_winner_that_was_overwritten_at_equal_size_is_replaced(tmp_path: Path) -> None:
    """Whoever may write into the store can; so it is looked at as what is adopted is."""
    store = Store(tmp_path)
    (publish(store, "winner").model / "weights.bin").write_text("WINNER")
    loser = publish(store, "loser?")
    assert (loser.model / "weights.bin").read_text() == "loser?"
    assert store.find(loser.name) == loser
    [aside] = tmp_path.glob("artifacts/.damaged-*")
    assert (aside / "model" / "weights.bin").read_text() == "WINNER"
    assert publish(store, "third?") == loser, "what holds what it published is adopted"


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "missing file", "truncated file", "renamed"])
def test_what_is_not_whole_is_not_found_and_is_replaced(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    path = publish(store).path
    match damage:
        case "no manifest":
            (path / "manifest.json").unlink()
        case "half a manifest":
            text = (path / "manifest.json").read_text()
            (path / "manifest.json").write_text(text[: len(text) // 2])
        case "missing file":
            (path / "model" / "weights.bin").unlink()
        case "truncated file":
            os.truncate(path / "model" / "weights.bin", 3)
        case "renamed":
            other = path.with_name("distill-" + KEY)
            shutil.copytree(path, other)
            assert store.find(other.name) is None
            (path / "manifest.json").unlink()
    assert store.find(path.name) is None
    with pytest.raises(MissingArtifact, match=f"the step that makes {path.name} must run again"):
        store.open(path.name)
    assert publish(store, "anew").path == path
    assert (store.open(path.name).model / "weights.bin").read_text() == "anew"


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifact, match=f"has no artifact finetune-{KEY}") as raised:
        Store(tmp_path).open(f"finetune-{KEY}")
    assert raised.value.artifact == f"finetune-{KEY}"
    assert classify(raised.value).exit_class is ExitClass.TRANSIENT, "it is no user's mistake"


@pytest.mark.parametrize("fault", [errno.ENOENT, errno.ESTALE, errno.EIO])
def test_a_volume_that_shows_an_artifact_late_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    store, looks, real = Store(tmp_path), [0], Path.read_bytes
    artifact = publish(store)
    monkeypatch.setattr("compression_pipeline.artifact.PATIENCE", 60)

    def slow(path: Path) -> bytes:
        looks[0] += 1
        if looks[0] <= 3:
            raise OSError(fault, "not yet")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", slow)
    assert store.open(artifact.name) == artifact


def test_a_process_killed_in_mid_write_leaves_a_draft_that_the_next_attempt_removes(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from compression_pipeline.artifact import Store
store = Store(Path({str(tmp_path)!r}))
store = Store(store.root, drafts=store.attempt_folder({KEY!r}, 1))
with store.draft("prune", {KEY!r}) as draft:
    (draft.path / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    store = Store(tmp_path)
    assert leftovers(tmp_path) != []
    assert store.find(f"prune-{KEY}") is None
    store.remove_drafts(KEY)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("file", ["weights.bin", "manifest.json"])
def test_a_disk_that_fills_in_mid_write(tmp_path: Path, file: str) -> None:
    """The kernel's own ENOSPC, from /dev/full behind the file's name."""
    store = Store(tmp_path)
    with pytest.raises(OSError, match="No space left") as raised, store.draft("prune", KEY) as draft:
        (draft.path / file).symlink_to("/dev/full")
        fill(draft)
        with (draft.path / file).open("a") as full:
            full.write("x" * 100_000)
        draft.publish(config={}, inputs={}, result={})
    fault = classify(raised.value)
    assert isinstance(fault, UserError)
    assert "the disk is full" in str(fault)
    assert leftovers(tmp_path) == []
    assert store.find(f"prune-{KEY}") is None
    assert publish(store).manifest.result == {"parameters": 3}  # there is space again


def test_a_full_disk_that_a_library_tells_in_its_own_words() -> None:
    for error in (RuntimeError("[enforce fail] . unexpected pos 64. No space left on device"), OSError("os error 28")):
        assert "the disk is full" in str(classify(error))


def test_a_file_that_may_not_grow_is_named() -> None:
    fault = classify(OSError(errno.EFBIG, "File too large", "store/model.safetensors"))
    assert isinstance(fault, TransientError)
    assert str(fault).startswith("store/model.safetensors could not be written whole (File too large)")


def test_a_read_only_store() -> None:
    store = Store(Path("/sys/compression-store"))  # where even root can't make a folder
    with pytest.raises(UserError, match=r"can't be written .*; mount it writable"):
        store.attempt_folder(KEY, 1)
    with pytest.raises(UserError, match="can't be written"), store.draft("prune", KEY):
        pass


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(UserError, match="is no folder"):
        Store(tmp_path / "store").attempt_folder(KEY, 1)


def test_attempts_are_listed_newest_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folders = [store.attempt_folder(KEY, number, launch) for number, launch in ((2, None), (10, "ab"), (1, None))]
    (tmp_path / "work" / KEY / "heartbeat").touch()
    assert store.earlier_attempts(KEY) == [folders[1], folders[0], folders[2]]
    assert store.attempt_path(KEY, 10, "cd") not in (folders[1], store.attempt_path(KEY, 10))
    assert store.earlier_attempts("f" * 32) == []


def test_what_a_step_made_under_another_key_is_found_without_its_note(tmp_path: Path) -> None:
    store, fingerprint = Store(tmp_path), "f" * 32
    with store.draft("prune", KEY) as draft:
        made = draft.publish(config={"fingerprint": fingerprint}, inputs={}, result={"parameters": 7})
    assert store.find_published("prune", fingerprint, KEY) == made
    assert store.find_published("prune", KEY) is None  # who measures otherwise finds no figures of its own
    assert store.find_published("prune", "e" * 32, KEY) is None


def test_a_step_whose_key_was_not_known_before_is_found_while_its_sources_are_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    artifact = publish(store)
    fingerprint = "f" * 32
    assert store.find_published("prune", fingerprint) is None
    watched = [Watched.now(Selection.at(folder))]
    store.record_published(fingerprint, Published(artifact=artifact.name, watched=watched))
    assert store.find_published("prune", fingerprint) == artifact
    assert store.find_published("prune", KEY) == artifact  # by its key, too
    os.utime(folder / "a.txt", (1, 1))
    assert store.find_published("prune", fingerprint) == artifact, "its content is what it was"
    (folder / "b.txt").write_text("b")
    os.utime(folder, (1, 1))  # however coarse the file system's clock
    assert store.find_published("prune", fingerprint) is None
