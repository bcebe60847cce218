"""What a checkpoint restores, and what is left of checkpoints when."""

import hashlib
import io
import itertools
import json
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from saving import FINGERPRINT, Trained, checkpoints, load, names, replace_file, save

from compression_pipeline.engines.history import History, StepEntry, ValidationEntry
from compression_pipeline.launcher.heartbeat import Heartbeat
from compression_pipeline.megatron import shards
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.shards import Part, Reading, Unreadable


def test_another_process_goes_on_alike(tmp_path: Path, engine: Runtime) -> None:
    original, other = Trained(engine, 3), Trained(engine, 0, seed=9)
    history = History(10, [StepEntry(3, 5.1, 1e-3, 0.7, 9e3)], [ValidationEntry(0, 5.5)])
    path = save(checkpoints(tmp_path, engine)[0], original, 3, history)
    resumed = load(checkpoints(tmp_path, engine, attempt=2)[0], other)
    assert (resumed.step, resumed.history, resumed.path) == (3, history, path)
    for step in range(3, 6):  # moments and step count too, not the weights alone
        original.step(step)
        other.step(step)
    expected = original.weights()
    assert all(torch.equal(weight, expected[name]) for name, weight in other.weights().items())


def test_random_generators_go_on_alike(tmp_path: Path, engine: Runtime) -> None:
    trained, kept = Trained(engine, 1), checkpoints(tmp_path, engine)[0]

    def draw() -> tuple[float, float, float]:
        return random.random(), numpy.random.random(), torch.rand(1).item()

    save(kept, trained, 1)
    expected = draw()
    assert draw() != expected
    load(kept, trained)
    assert draw() == expected


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path, engine: Runtime) -> None:
    trained = Trained(engine, 0)
    before = trained.weights()
    assert load(checkpoints(tmp_path, engine)[0], trained) is None
    assert all(torch.equal(weight, before[name]) for name, weight in trained.weights().items())


def test_the_oldest_go_whoever_wrote_them(tmp_path: Path, engine: Runtime) -> None:
    trained = Trained(engine, 0)
    for attempt, step in ((1, 2), (1, 4), (2, 5), (3, 5)):
        save(checkpoints(tmp_path, engine, attempt)[0], trained, step)
    assert names(tmp_path) == ["2/checkpoints/step-00000005", "3/checkpoints/step-00000005"]
    kept, _ = checkpoints(tmp_path, engine, 4)
    newest = kept.newest()
    assert newest is not None
    assert newest.parent.parent.name == "3"


class Meanwhile(History):
    """A history whose writing, which is in the middle of a checkpoint's, lets something else happen first."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(10)
        self._act = act

    def to_json(self) -> dict[str, Any]:
        self._act()
        return super().to_json()


def test_two_jobs_that_save_the_same_step_at_once_tear_nothing(tmp_path: Path, engine: Runtime) -> None:
    """One was paused so long that another took its step over; both are the first attempt of their runs."""
    paused, taker, later = Trained(engine, 2), Trained(engine, 2), Trained(engine, 0)
    theirs, _ = checkpoints(tmp_path, engine, launch="b" * 32)
    mine, _ = checkpoints(tmp_path, engine, launch="a" * 32)
    save(mine, paused, 2, Meanwhile(lambda: save(theirs, taker, 2)))
    assert names(tmp_path) == ["1-aaaaaaaa/checkpoints/step-00000002", "1-bbbbbbbb/checkpoints/step-00000002"]
    for job in ("aaaaaaaa", "bbbbbbbb"):
        kept, events = checkpoints(tmp_path, engine, launch="c" * 32)
        resumed = load(kept, later)
        assert resumed.step == 2
        assert events.seen == []  # nothing is damaged
        assert all(torch.equal(weight, paused.weights()[name]) for name, weight in later.weights().items())
        shutil.rmtree(tmp_path / "work" / FINGERPRINT / f"1-{job}")


def test_a_job_removes_old_checkpoints_only_while_the_step_is_its_own(tmp_path: Path, engine: Runtime) -> None:
    trained, work = Trained(engine, 0), tmp_path / "work" / FINGERPRINT
    kept, _ = checkpoints(tmp_path, engine, launch="a" * 32, keep=1)

    def holds(launch: str) -> None:
        Heartbeat(work, "r/finetune/1", token=launch, probe=work).claim()

    holds("a" * 32)
    save(kept, trained, 1)
    save(kept, trained, 2)
    assert names(tmp_path) == ["1-aaaaaaaa/checkpoints/step-00000002"]
    (work / "heartbeat").unlink()
    holds("b" * 32)  # it took over, and reads step 2 now
    save(kept, trained, 3)
    assert names(tmp_path) == [f"1-aaaaaaaa/checkpoints/step-0000000{step}" for step in (2, 3)]


def test_the_files_are_safetensors_and_json_alone(tmp_path: Path, engine: Runtime) -> None:
    trained = Trained(engine, 2)
    path = save(checkpoints(tmp_path, engine)[0], trained, 2)
    assert sorted(file.name for file in path.iterdir()) == [
        "manifest.json",
        "progress.json",
        "rank-00000.safetensors",
    ]
    stored = load_file(path / "rank-00000.safetensors")
    sizes = {key: sum(t.numel() for n, t in stored.items() if n.partition("@")[0] == key) for key in keys_of(stored)}
    model = {key: size for key, size in sizes.items() if not key.startswith("optimizer.")}
    assert sum(model.values()) == sum(weight.numel() for weight in trained.weights().values())
    assert sum(sizes.values()) == 3 * sum(model.values())  # and two moments; float32 weights are their own masters


def keys_of(stored: dict[str, torch.Tensor]) -> set[str]:
    return {name.partition("@")[0] for name in stored}


class Bomb:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self._mark),))


def bombs(mark: Path) -> dict[str, bytes]:
    """The bomb as a plain pickle, as torch and as numpy save it."""
    saved, array = io.BytesIO(), io.BytesIO()
    torch.save(Bomb(mark), saved)
    numpy.save(array, numpy.array([Bomb(mark)], dtype=object), allow_pickle=True)
    return {"pickle": pickle.dumps(Bomb(mark)), "torch": saved.getvalue(), "numpy": array.getvalue()}


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "progress.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "numpy"])
def test_nothing_that_another_may_have_written_is_unpickled(
    tmp_path: Path, engine: Runtime, name: str, kind: str
) -> None:
    mark, trained = tmp_path / "ran", Trained(engine, 0)
    kept, _ = checkpoints(tmp_path, engine)
    save(kept, trained, 1)
    path = save(kept, trained, 2)
    bomb = bombs(mark)[kind]
    if name == "manifest.json":
        (path / name).write_bytes(bomb)
    else:
        replace_file(path, name, bomb)
    for extra in (".metadata", "common.pt", "__0_0.distcp", "order/cache.npy"):  # where torch and Megatron would look
        (path / extra).parent.mkdir(exist_ok=True)
        (path / extra).write_bytes(bomb)
    later, events = checkpoints(tmp_path, engine, attempt=2)
    assert load(later, trained).step == 1
    assert not mark.exists()
    [warning] = events.seen
    assert f"checkpoint {path} is damaged (" in warning["message"]
    assert names(tmp_path) == [f"1/checkpoints/{one}" for one in ("damaged-step-00000002", "step-00000001")]


def test_the_bombs_are_live(tmp_path: Path) -> None:
    for kind, content in bombs(tmp_path / "ran").items():
        if kind == "torch":
            torch.load(io.BytesIO(content), weights_only=False)
        else:  # reads plain pickles, too
            numpy.load(io.BytesIO(content), allow_pickle=True)
        (tmp_path / "ran").rmdir()


def test_what_a_later_version_adds_is_ignored(tmp_path: Path, engine: Runtime) -> None:
    trained, history = Trained(engine, 0), History(10, [StepEntry(1, 5.1, 1e-3, 0.7, 9e3)], [ValidationEntry(0, 5.5)])
    path = save(checkpoints(tmp_path, engine)[0], trained, 1, history)
    progress = json.loads((path / "progress.json").read_text())
    for entry in (progress, progress["history"], *progress["history"]["train"], *progress["history"]["validation"]):
        entry["fromTomorrow"] = {"a": 1}
    replace_file(path, "progress.json", json.dumps(progress).encode())
    resumed = load(checkpoints(tmp_path, engine, attempt=2)[0], trained)
    assert (resumed.step, resumed.history) == (1, history)


@pytest.mark.parametrize("fields", [{"layers": 2}, {"hidden_size": 24}, {"ffn_hidden_size": 48}], ids=str)
def test_another_model_s_checkpoint_stays_and_changes_nothing(
    tmp_path: Path, engine: Runtime, fields: dict[str, int]
) -> None:
    path = save(checkpoints(tmp_path, engine)[0], Trained(engine, 1), 1)
    other = Trained(engine, 0, seed=3, **fields)
    before = other.weights()
    kept, events = checkpoints(tmp_path, engine, attempt=2)
    assert load(kept, other) is None
    assert len(events.seen) == 1
    assert path.exists()
    assert all(torch.equal(weight, before[name]) for name, weight in other.weights().items())


@given(st.lists(st.integers(0, 24), max_size=5), st.lists(st.integers(0, 24), max_size=5))
def test_any_layout_reads_what_any_other_wrote(written: list[int], read: list[int]) -> None:
    """A tensor in parts along its first axis, by other cuts each time."""
    whole = torch.arange(72.0).reshape(24, 3)

    def cut(tensor: torch.Tensor, places: list[int]) -> list[Part]:
        edges = sorted({0, 24, *places})
        return [Part("w", (24, 3), (a, 0), tensor[a:b], True) for a, b in itertools.pairwise(edges)]

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{rank}.safetensors") for rank in range(2)]
        parts = cut(whole, written)
        for rank, path in enumerate(paths):
            record = shards.write(path, parts[rank::2], rank)
            content = path.read_bytes()
            assert record == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        found = torch.zeros(24, 3)
        reading = Reading(paths, cut(found, read))
        assert reading.extra == [0, 1]
        reading.copy()
        assert torch.equal(found, whole)
        if len(parts) > 1:
            with pytest.raises(Unreadable, match="w is not there as a whole"):
                Reading(paths[:1], cut(found, read))


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"format": 3, "files": 3}', json.dumps({"format": 3, "files": {"x": {}}})], ids=str
)
def test_a_manifest_of_any_sort_of_nonsense_is_a_damaged_checkpoint(
    tmp_path: Path, engine: Runtime, manifest: str
) -> None:
    trained = Trained(engine, 0)
    path = save(checkpoints(tmp_path, engine)[0], trained, 1)
    (path / "manifest.json").write_text(manifest)
    kept, events = checkpoints(tmp_path, engine, attempt=2)
    assert load(kept, trained) is None
    assert events.seen[0]["event"] == "warning"
    assert names(tmp_path) == ["1/checkpoints/damaged-step-00000001"]
