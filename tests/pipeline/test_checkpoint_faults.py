"""What becomes of a checkpoint that can't be read: damage, another version, a fault that passes."""

import errno
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from saving import Trained, checkpoints, load, names, replace_file, save

from compression_pipeline.config import ParallelLayout
from compression_pipeline.errors import PhaseError, TransientError, UserError
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.shards import Foreign, Missing, Unreadable


@pytest.mark.parametrize("stated", [{}, {"format": 1}, {"format": 2}, {"format": 4}], ids=str)
def test_a_checkpoint_of_another_version_stays_for_whoever_can_read_it(
    tmp_path: Path, engine: Runtime, stated: dict[str, int]
) -> None:
    """An older image trains on from what it can read; what a newer one wrote outlives its checkpoints."""
    trained = Trained(engine, 0)
    writer, _ = checkpoints(tmp_path, engine, keep=3)
    save(writer, trained, 1)
    for step in (8, 9):
        manifest = save(writer, trained, step) / "manifest.json"
        content = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({k: v for k, v in content.items() if k != "format"} | stated))
    kept, events = checkpoints(tmp_path, engine, attempt=2, keep=1)
    assert load(kept, trained).step == 1
    assert len(events.seen) == 2
    assert all(f"in format {stated.get('format', 1)}, this version reads 3)" in said["message"] for said in events.seen)
    save(kept, trained, 2)
    assert names(tmp_path) == [f"{one}/checkpoints/step-0000000{step}" for one, step in ((1, 8), (1, 9), (2, 2))]
    newest = kept.newest()
    assert newest is not None
    assert newest.name == "step-00000002"


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        ("checkpoint.sha256", OSError(errno.EIO, "Input/output error")),
        ("checkpoint.sha256", OSError(errno.ESTALE, "Stale file handle")),
        ("shards.safe_open", SafetensorError("I/O error: Input/output error (os error 5)")),
        ("shards.safe_open", OSError(errno.EIO, "Input/output error")),
        ("generators.torch.set_rng_state", RuntimeError("CUDA error: unspecified launch failure")),
        ("checkpoint.Reading.copy", OSError(errno.EIO, "Input/output error")),
        ("checkpoint.Checkpoints.newest", OSError(errno.ESTALE, "Stale file handle")),
    ],
    ids=str,
)
def test_what_cannot_be_read_for_now_is_left_for_another_attempt(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch, place: str, fault: Exception
) -> None:
    trained = Trained(engine, 0)
    writer, _ = checkpoints(tmp_path, engine)
    save(writer, trained, 1)
    save(writer, trained, 2)

    def fail(*_: object, **__: object) -> None:
        raise fault

    kept, events = checkpoints(tmp_path, engine, attempt=2)
    with monkeypatch.context() as broken:
        broken.setattr(f"compression_pipeline.megatron.{place}", fail)
        with pytest.raises(TransientError):
            load(kept, trained)
    assert events.seen == []
    assert names(tmp_path) == [f"1/checkpoints/step-0000000{step}" for step in (1, 2)]
    assert load(checkpoints(tmp_path, engine, attempt=3)[0], trained).step == 2


def test_what_may_not_be_read_is_told_and_stays(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained(engine, 0)
    save(checkpoints(tmp_path, engine)[0], trained, 1)

    def forbidden(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("compression_pipeline.megatron.checkpoint.sha256", forbidden)
    with pytest.raises(UserError, match="check the permissions"):
        load(checkpoints(tmp_path, engine, attempt=2)[0], trained)
    assert names(tmp_path) == ["1/checkpoints/step-00000001"]


def test_a_checkpoint_that_lacks_a_file_stays(tmp_path: Path, engine: Runtime) -> None:
    """Another node's file may be seen later."""
    trained, (writer, _) = Trained(engine, 0), checkpoints(tmp_path, engine)
    save(writer, trained, 1)
    late = save(writer, trained, 2) / "rank-00000.safetensors"
    hidden = late.rename(tmp_path / "hidden")
    kept, _ = checkpoints(tmp_path, engine, attempt=2)
    assert load(kept, trained).step == 1
    hidden.rename(late)
    assert load(checkpoints(tmp_path, engine, attempt=3)[0], trained).step == 2


@pytest.mark.parametrize("state", ["00", "zz", None, {}])
def test_random_states_that_are_none_are_damage(tmp_path: Path, engine: Runtime, state: Any) -> None:
    trained = Trained(engine, 0)
    path = save(checkpoints(tmp_path, engine)[0], trained, 1)
    file = path / "rank-00000.safetensors"
    with safe_open(str(file), framework="pt") as opened:
        told = opened.metadata()
    extra = json.loads(told["extra"]) | {"torch": state}
    save_file(load_file(file), file, metadata=told | {"extra": json.dumps(extra)})
    replace_file(path, file.name, file.read_bytes())
    assert load(checkpoints(tmp_path, engine, attempt=2)[0], trained) is None
    assert names(tmp_path) == ["1/checkpoints/damaged-step-00000001"]


@pytest.mark.parametrize(
    ("others", "raised"),
    [
        ([None, TransientError("EIO"), None], TransientError),
        ([Unreadable("flipped"), TransientError("EIO"), UserError("u")], TransientError),
        ([Unreadable("flipped"), Foreign("of another model"), None], Unreadable),
        ([Foreign("of another model"), None, None], Foreign),
        ([Missing("gone"), UserError("not permitted"), None], UserError),
    ],
    ids=str,
)
def test_a_fault_of_one_rank_is_every_rank_s(
    tmp_path: Path,
    engine: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    others: list[Exception | None],
    raised: type[Exception],
) -> None:
    """This rank is sound; whatever the others met, it waits in no collective for them."""
    trained = Trained(engine, 0)
    path = save(checkpoints(tmp_path, engine)[0], trained, 1)
    kept, events = checkpoints(tmp_path, replace(engine, layout=ParallelLayout(nodes=1, per_node=4)), attempt=2)
    calls = itertools.count()

    def gather(found: list[Exception | None], mine: Exception | None) -> None:
        found[:] = [mine, *(others if next(calls) == 1 else [None] * 3)]  # the first asks for the newest

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    if issubclass(raised, PhaseError):
        with pytest.raises(raised):
            load(kept, trained)
    else:
        assert load(kept, trained) is None
        assert len(events.seen) == 1
    assert path.exists() is (raised is not Unreadable)
