"""An interrupted training goes on to the last bit, whatever happened to it."""

import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import (
    SETTINGS,
    assert_same_run,
    correct,
    first_step,
    history_of,
    job_in,
    steps_kept,
    stop_after,
    weights_of,
)
from stores import Recorder, context

from compression_pipeline.artifact import Store
from compression_pipeline.context import StopFlag
from compression_pipeline.errors import Interrupted, PhaseError, TransientError, UserError, torn_write
from compression_pipeline.megatron.runtime import Runtime


class StopsAtLook(StopFlag):
    """SIGTERM that comes just before the flag is looked at for the `look`th time (counted from 1)."""

    def __init__(self, look: int) -> None:
        self._left = look

    @property
    def raised(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._left -= 1
        return self._left <= 0


class TestStopDuringValidation:
    """The validation has 6 batches: 24 sequences, 4 at a time. It is made at steps 0, 5, 10 and 12."""

    @pytest.mark.parametrize(("look", "step"), [(1, 0), (4, 0), (12, 5), (14, 5), (17, 5), (32, 12)])
    def test_to_the_last_bit(self, store: Store, uninterrupted: Store, engine: Runtime, look: int, step: int) -> None:
        current, events = context(store)
        current.stop = StopsAtLook(look)
        with pytest.raises(Interrupted) as stopped:
            correct(job_in(store), current, engine)
        done = [event["step"] for event in events.seen if event["event"] == "progress"]
        assert done == list(range(1, step + 1))
        validated = [event["step"] for event in events.seen if event["event"] == "metric"]
        assert validated == [at for at in (0, 5, 10, 12) if at < step]
        if step:
            assert str(stopped.value) == f"was told to stop (SIGTERM) after step {step}; it is in a checkpoint"
        assert (f"step-{step:08d}" in steps_kept(store)) == (step > 0)

        current, events = context(store, attempt=2)
        correct(job_in(store, attempt=2), current, engine)
        assert next(event["step"] for event in events.seen if event["event"] == "metric") == step
        assert_same_run(store, uninterrupted)


class TestResume:
    @pytest.mark.parametrize("step", [1, 5, 8, 10])
    def test_to_the_last_bit(self, store: Store, uninterrupted: Store, engine: Runtime, step: int) -> None:
        stop_after(store, step, engine)
        correct(job_in(store, attempt=2), context(store, attempt=2)[0], engine)
        assert_same_run(store, uninterrupted)

    def test_again_and_again(self, store: Store, uninterrupted: Store, engine: Runtime) -> None:
        for attempt, step in enumerate((2, 5, 8), start=1):
            stop_after(store, step, engine, attempt)
        correct(job_in(store, attempt=9), context(store, attempt=9)[0], engine)
        assert_same_run(store, uninterrupted)

    def test_a_crash_after_the_last_step_repeats_nothing(
        self, store: Store, uninterrupted: Store, engine: Runtime
    ) -> None:
        current, _ = context(store)

        def crash() -> None:
            raise KeyboardInterrupt

        class Crash(Recorder):
            def _write(self, event: str, **fields: Any) -> None:
                if event == "metric" and fields["step"] == 12:
                    crash()

        with pytest.raises(KeyboardInterrupt):
            correct(job_in(store), replace(current, events=Crash()), engine)
        current, events = context(store, attempt=2)
        correct(job_in(store, attempt=2), current, engine)
        assert [event["step"] for event in events.seen if event["event"] == "progress"] == [9, 10, 11, 12]
        assert_same_run(store, uninterrupted)

    def test_a_changed_interval_or_micro_batch_is_no_other_run(self, store: Store, engine: Runtime) -> None:
        stop_after(store, 5, engine)
        changed = SETTINGS.model_copy(update={"checkpoint_interval": 1, "micro_batch_size": 8, "log_interval": 5})
        current, events = context(store, attempt=2)
        correct(job_in(store, attempt=2, settings=changed), current, engine)
        assert [event["step"] for event in events.seen if event["event"] == "progress"] == [10, 12]
        assert [entry["step"] for entry in history_of(store)["train"]] == list(range(1, 13))

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
    def test_a_damaged_checkpoint_gives_way_to_the_one_before(
        self, store: Store, uninterrupted: Store, engine: Runtime, damage: str
    ) -> None:
        stop_after(store, 6, engine)
        [folder] = (store.root / "work").glob("*/1/checkpoints")
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000007"]
        damaged = folder / "step-00000007"
        weights = max(damaged.glob("*.safetensors"), key=lambda path: path.stat().st_size)
        content = bytearray(weights.read_bytes())
        if damage == "truncated":
            weights.write_bytes(content[: len(content) // 2])
        elif damage == "flipped":
            content[len(content) // 2] ^= 1
            weights.write_bytes(content)
        elif damage == "missing":
            weights.unlink()
        else:
            (damaged / "manifest.json").write_text("{")
        current, events = context(store, attempt=2)
        correct(job_in(store, attempt=2), current, engine)
        [warning] = [event["message"] for event in events.seen if event["event"] == "warning"]
        assert warning.startswith(f"checkpoint {damaged} is damaged (")
        assert warning.endswith("); the one before is used")
        assert first_step(events) == 5
        assert_same_run(store, uninterrupted)

    def test_a_draft_that_was_never_finished_is_no_checkpoint(
        self, store: Store, uninterrupted: Store, engine: Runtime
    ) -> None:
        stop_after(store, 2, engine)
        [checkpoint] = (store.root / "work").glob("*/1/checkpoints/step-*")
        shutil.copytree(checkpoint, checkpoint.with_name("step-00000009.tmp"))
        correct(job_in(store, attempt=2), context(store, attempt=2)[0], engine)
        assert_same_run(store, uninterrupted)

    def test_all_damaged_means_from_the_start(self, store: Store, uninterrupted: Store, engine: Runtime) -> None:
        stop_after(store, 2, engine)
        for manifest in (store.root / "work").glob("*/1/checkpoints/*/manifest.json"):
            manifest.unlink()
        current, events = context(store, attempt=2)
        correct(job_in(store, attempt=2), current, engine)
        assert first_step(events) == 1
        assert_same_run(store, uninterrupted)


def test_bfloat16_keeps_its_master_weights_through_a_stop(store: Store, engine: Runtime, tmp_path: Path) -> None:
    """What a GPU does by default, here in the CPU's arithmetic: the float32 losses to bfloat16's precision."""
    half = replace(engine, dtype=torch.bfloat16)
    reference, single = Store(tmp_path / "reference"), Store(tmp_path / "single")
    for other in (reference, single):
        shutil.copytree(store.artifacts, other.artifacts)
    correct(job_in(reference), context(reference)[0], half)
    stop_after(store, 5, half)
    correct(job_in(store, attempt=2), context(store, attempt=2)[0], half)
    assert_same_run(store, reference)
    assert {weight.dtype for weight in weights_of(store).values()} == {torch.bfloat16}

    correct(job_in(single), context(single)[0], engine)
    found, expected = ([entry["loss"] for entry in history_of(one)["train"]] for one in (store, single))
    assert found != expected
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("keep", "names"), [(1, ["08"]), (2, ["04", "08"]), (9, ["04", "08"])])
def test_so_many_checkpoints_are_kept(store: Store, engine: Runtime, keep: int, names: list[str]) -> None:
    settings = SETTINGS.model_copy(update={"keep_checkpoints": keep})
    stop_after(store, 7, engine, settings=settings)
    assert steps_kept(store) == [f"step-000000{name}" for name in names]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes meanwhile: a write fails in its middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_older_checkpoints_and_no_draft(
    store: Store, uninterrupted: Store, engine: Runtime
) -> None:
    stop_after(store, 2, engine)
    current, _ = context(store, attempt=2)
    with pytest.raises(TransientError) as raised, largest_file(30_000):
        correct(job_in(store, attempt=2), current, engine)
    assert re.search(r"/step-\d{8}\.tmp could not be written whole \(.+\)", str(raised.value))
    assert steps_kept(store) == ["step-00000003"]
    correct(job_in(store, attempt=3), context(store, attempt=3)[0], engine)
    assert_same_run(store, uninterrupted)


@pytest.mark.parametrize(
    ("free", "kind", "said"),
    [(15 * 2**20, UserError, "the disk is full while writing"), (2**30, TransientError, "written whole")],
)
def test_a_torn_archive_is_a_full_disk_where_there_is_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kind: type[PhaseError], said: str
) -> None:
    """torch's own words, which stand over the OSError of the write that failed."""
    real = os.statvfs(tmp_path)
    volume = os.statvfs_result((4096, 4096, real.f_blocks, free // 4096, free // 4096, *real[5:10]))
    monkeypatch.setattr(os, "statvfs", lambda _: volume)
    torn = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    fault = torn_write(torn, tmp_path)
    assert isinstance(fault, kind)
    assert said in str(fault)
    assert str(tmp_path) in str(fault)
    assert torn_write(RuntimeError("shapes differ"), tmp_path) is None
