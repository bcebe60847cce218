"""A student that misses its gate is trained on, once, at the lowest learning rate; who resumes decides alike."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import Stopping
from pruned import DISTILLED, distill_job, pruned_store
from safetensors.torch import load_file
from stores import context

from compression_pipeline.artifact import Store
from compression_pipeline.config import AcceptConfig, DistillConfig, DistillJob, DistillResult
from compression_pipeline.engines.history import History, ValidationEntry
from compression_pipeline.errors import Interrupted
from compression_pipeline.phases import distill as phase

NAME = f"distill-{DISTILLED}"
LOW = 1e-3
SETTINGS = DistillConfig(
    steps=4,
    global_batch_size=8,
    micro_batch_size=4,
    learning_rate=3e-3,
    min_learning_rate=LOW,
    warmup_steps=1,
    checkpoint_interval=3,
    validation_interval=10,
)


pytestmark = pytest.mark.usefixtures("shared_engine")


def job(store: Store, accept: AcceptConfig | None, attempt: int = 1) -> DistillJob:
    return distill_job(store, SETTINGS, attempt, accept=accept)


def distilled(store: Store, accept: AcceptConfig | None, attempt: int = 1) -> DistillResult:
    return phase.run(job(store, accept, attempt), context(store, DISTILLED, attempt=attempt)[0])


def history(store: Store) -> dict[str, Any]:
    return json.loads((store.open(NAME).path / "history.json").read_text())


def test_a_student_that_misses_is_trained_on_and_one_that_meets_is_not(tmp_path: Path) -> None:
    plain = pruned_store(tmp_path / "plain")
    before = distilled(plain, None)
    meets = pruned_store(tmp_path / "meets")
    met = distilled(meets, AcceptConfig(max_validation_loss=before.distilled_loss, extend_steps=3))
    assert met.extended_steps is None and met.distilled_loss == before.distilled_loss
    misses = pruned_store(tmp_path / "misses")
    missed = distilled(misses, AcceptConfig(max_validation_loss=before.distilled_loss * 0.999, extend_steps=3))
    assert missed.extended_steps == 3 and missed.distilled_loss < before.distilled_loss
    told = history(misses)
    assert told["totalSteps"] == 7
    assert [entry["step"] for entry in told["validation"]] == [0, 4, 7]
    assert told["validation"][1]["loss"] == before.distilled_loss
    assert [entry["learningRate"] for entry in told["train"]][3:] == [LOW] * 4
    assert misses.open(NAME).manifest.metrics["tokens"] == 7 * 8 * 32


def test_a_gate_on_the_teacher_knows_its_loss(tmp_path: Path) -> None:
    asked = job(Store(tmp_path), AcceptConfig(max_loss_over_teacher=0.5, extend_steps=1))
    found = phase.extension(asked, teacher_loss=2.0)
    assert found
    for losses, wanted in (([2.6, 2.5], False), ([2.5, 2.6], True)):
        history = History(4, validation=[ValidationEntry(step, loss) for step, loss in enumerate(losses, start=3)])
        assert found.wanted(history) is wanted
        kept = asked.model_copy(update={"distill": SETTINGS.model_copy(update={"keep_best": "validationLoss"})})
        best = phase.extension(kept, teacher_loss=2.0)
        assert best and not best.wanted(history), "the best is what is kept"
    judged_only = job(Store(tmp_path), AcceptConfig(max_loss_over_teacher=0.5))
    assert phase.extension(judged_only, teacher_loss=2.0) is None


@pytest.mark.parametrize("step", [4, 5])
def test_an_extension_goes_on_to_the_last_bit(tmp_path: Path, step: int) -> None:
    accept = AcceptConfig(max_validation_loss=1e-3, extend_steps=3)
    whole = pruned_store(tmp_path / "whole")
    expected = distilled(whole, accept)
    store = pruned_store(tmp_path / "stopped")
    stopped, _ = context(store, DISTILLED)
    stop: Callable[[], None] = lambda: setattr(stopped.stop, "raised", True)  # noqa: E731
    stopped.events = Stopping(step, stop)
    with pytest.raises(Interrupted):
        phase.run(job(store, accept), stopped)
    found = distilled(store, accept, attempt=2)
    assert found.distilled_loss == expected.distilled_loss and found.extended_steps == 3
    one, other = (load_file(of.open(NAME).model / "model.safetensors") for of in (whole, store))
    assert all(torch.equal(one[name], other[name]) for name in one)
