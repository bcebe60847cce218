"""keepBest: what is published are the weights of the best validation, whoever was interrupted on the way."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from finetuning import Stopping
from hypothesis import given
from hypothesis import strategies as st
from pruned import DISTILLED, distill_job, pruned_store
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stores import context

from compression_pipeline.artifact import Store
from compression_pipeline.config import DistillConfig, DistillJob, DistillResult, semantic_fields
from compression_pipeline.engines.history import History, StepEntry, ValidationEntry
from compression_pipeline.errors import Interrupted, UserError
from compression_pipeline.megatron.engine import MegatronEngine
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import distill as phase
from compression_pipeline.phases.best import BestWeights

NAME = f"distill-{DISTILLED}"
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 1,
    "checkpoint_interval": 3,
    "validation_interval": 2,
}
LOSSES = {2: 5.0, 4: 3.0, 6: 4.0}
"""What is measured after these steps: step 4 is the best."""


@pytest.fixture(autouse=True)
def scripted(engine: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phases find the process group that the tests share; validations of a training give `LOSSES`."""
    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))
    whole = MegatronEngine.distill

    def distill(self: Any, student: Any, teacher: Any, training: Any, **fields: Any) -> Any:
        told = training.on_step

        def on_step(step: int, history: History, weights: Any) -> None:
            if history.validation[-1].step == step:
                history.validation[-1] = ValidationEntry(step, LOSSES.get(step, 9.0))
            told(step, history, weights)

        return whole(self, student, teacher, dataclasses.replace(training, on_step=on_step), **fields)

    monkeypatch.setattr(MegatronEngine, "distill", distill)


def job(store: Store, attempt: int = 1, **settings: Any) -> DistillJob:
    return distill_job(store, DistillConfig(**(SETTINGS | settings)), attempt)


def distilled(store: Store, attempt: int = 1, **settings: Any) -> DistillResult:
    return phase.run(job(store, attempt, **settings), context(store, DISTILLED, attempt=attempt)[0])


def weights(store: Store) -> dict[str, torch.Tensor]:
    return load_file(store.open(NAME).model / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_weights_are_published_and_an_interruption_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pruned_store(tmp_path / "whole")
    result = distilled(store, keep_best="validationLoss")
    assert (result.best_step, result.distilled_loss) == (4, 3.0)
    stopped = pruned_store(tmp_path / "stopped")
    told, _ = context(stopped, DISTILLED)
    told.events = Stopping(5, lambda: setattr(told.stop, "raised", True))
    with pytest.raises(Interrupted):
        phase.run(job(stopped, keep_best="validationLoss"), told)
    again = distilled(stopped, attempt=2, keep_best="validationLoss")
    assert again.best_step == 4 and same(weights(stopped), weights(store))
    monkeypatch.setitem(LOSSES, 6, 2.0)
    last = pruned_store(tmp_path / "last")
    assert distilled(last, keep_best="validationLoss").best_step == 6
    assert not same(weights(last), weights(store))
    plain = pruned_store(tmp_path / "plain")
    assert distilled(plain).best_step is None and same(weights(plain), weights(last))


def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pruned_store(tmp_path)

    def full(tensors: Any, student: Any, folder: Path, **_: Any) -> None:
        folder.mkdir(parents=True)
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("compression_pipeline.phases.snapshots.write_checkpoint", full)
    with pytest.raises(UserError, match="the disk is full"):
        distilled(store, keep_best="validationLoss")
    assert not list(store.root.rglob("step-*.tmp"))


def course(losses: list[float]) -> History:
    """A training whose steps had these losses, each validated; the last step is the worst."""
    history = History(len(losses))
    for step, loss in enumerate(losses, start=1):
        history.add_step(StepEntry(step, loss, 1e-3, 1.0, 100.0 * loss))
        history.add_validation(ValidationEntry(step, loss))
    return history


class Alone:
    """What of an engine the search for the best weights needs: one rank, a state of one tensor each."""

    rank = 0

    def agree(self, value: Any) -> Any:
        return value

    def tensors(self, state: Any, student: Any) -> Any:
        return iter(state.items())


def test_weights_of_another_course_of_the_training_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that does not compute twice alike who goes back to a checkpoint has other weights from there on."""

    def write(tensors: Any, student: Any, folder: Path, **_: Any) -> None:
        folder.mkdir(parents=True)
        save_file(dict(tensors), folder / "model.safetensors")

    monkeypatch.setattr("compression_pipeline.phases.snapshots.write_checkpoint", write)
    store = Store(tmp_path)
    told, events = context(store, DISTILLED)
    best = BestWeights(job(store, keep_best="validationLoss"), told, cast("Any", Alone()), cast("Any", None), tmp_path)
    first, again, other = course([4.0, 2.0, 3.0]), course([4.0, 2.0, 3.0]), course([4.0000001, 2.0, 3.0])
    for step in (1, 2):
        entries = dataclasses.replace(first, validation=first.validation[:step])
        best.on_step(step, entries, lambda: {"a": torch.ones(2)})
    [folder] = told.folder.glob("best/step-00000002")
    again.train = [dataclasses.replace(entry, tokens_per_second=7.0) for entry in again.train]
    assert best.find(again) == (again.validation[1], folder), "the same to the last bit, at another speed"
    assert best.find(other) == (other.validation[2], None)
    assert "step 2 are those of an earlier course of this training" in events.seen[-1]["message"]
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"!")
    assert best.find(first) == (first.validation[2], None)
    assert "step 2 are damaged" in events.seen[-1]["message"]


def test_how_often_is_validated_shapes_the_student_only_where_the_best_is_kept() -> None:
    def key(**fields: Any) -> Any:
        return semantic_fields(DistillConfig(steps=50, warmup_steps=1, **fields))

    assert key(validation_interval=5) == key(validation_interval=7) == key()
    one, other = (key(validation_interval=every, keep_best="validationLoss") for every in (5, 7))
    assert one != other and one["keepBest"] == "validationLoss"


@given(st.lists(st.floats(0, 10), min_size=1), st.none() | st.integers(0, 20))
def test_the_best_is_the_earliest_of_the_lowest_after_a_step(losses: list[float], until: int | None) -> None:
    history = History(len(losses), validation=[ValidationEntry(step, loss) for step, loss in enumerate(losses)])
    seen = [entry for entry in history.validation[1:] if until is None or entry.step <= until]
    best = history.best(until=until)
    assert (best is None) == (not seen)
    if best is not None:
        assert best.loss == min(entry.loss for entry in seen)
        assert all(entry.loss > best.loss for entry in seen if entry.step < best.step)
