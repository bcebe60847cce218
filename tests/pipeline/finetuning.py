"""Small teacher corrections that tests run, stop and compare."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import finetune_job
from safetensors.torch import load_file
from stores import DATA, TEACHER, Recorder, context

from compression_pipeline.artifact import Store
from compression_pipeline.config import FinetuneConfig, FinetuneJob, FinetuneResult
from compression_pipeline.context import Context
from compression_pipeline.errors import Interrupted
from compression_pipeline.megatron.engine import MegatronEngine
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import finetune

SETTINGS = FinetuneConfig(
    steps=12,
    global_batch_size=8,
    micro_batch_size=4,
    learning_rate=2e-2,
    min_learning_rate=1e-3,
    warmup_steps=3,
    checkpoint_interval=4,
    validation_interval=5,
)


def copy_of(store: Store, root: Path) -> Store:
    """A store in `root` with the same artifacts."""
    shutil.copytree(store.artifacts, root / "artifacts")
    return Store(root)


def job_in(store: Store, **fields: Any) -> FinetuneJob:
    settings = fields.pop("settings", SETTINGS)
    return finetune_job(store=str(store.root), data=DATA, teacher=TEACHER, finetune=settings, **fields)


def correct(job: FinetuneJob, context: Context, runtime: Runtime) -> FinetuneResult:
    """The phase by Megatron, in a runtime that is there."""
    return finetune.correct(job, context, MegatronEngine(runtime, context))


def history_of(store: Store) -> dict[str, Any]:
    """The published history, but for the speed, which no two runs share."""
    artifact = store.open("finetune-" + "0" * 32)
    content = json.loads((artifact.path / "history.json").read_text())
    for entry in content["train"]:
        assert entry.pop("tokensPerSecond") > 0
    return content


def weights_of(store: Store) -> dict[str, torch.Tensor]:
    return load_file(store.open("finetune-" + "0" * 32).model / "model.safetensors")


def assert_same_run(store: Store, reference: Store) -> None:
    """Losses, learning rates, gradient norms, validations and weights agree to the last bit."""
    assert history_of(store) == history_of(reference)
    found, expected = weights_of(store), weights_of(reference)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Stopping(Recorder):
    """Calls `act` when the progress of step `step` is told."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        super().__init__()
        self._step = step
        self._act = act

    def _write(self, event: str, **fields: Any) -> None:
        super()._write(event, **fields)
        if event == "progress" and fields["step"] == self._step:
            self._act()


def stop_after(store: Store, step: int, engine: Runtime, attempt: int = 1, **fields: Any) -> None:
    """An attempt that is told to stop while step `step` ends: it ends in the validation after that, or after the next
    step.
    """
    current, _ = context(store, attempt=attempt)

    def stop() -> None:
        current.stop.raised = True

    last = step if step % SETTINGS.validation_interval == 0 else step + 1
    with pytest.raises(Interrupted, match=f"after step {last}; it is in a checkpoint"):
        correct(job_in(store, attempt=attempt, **fields), replace(current, events=Stopping(step, stop)), engine)


def first_step(events: Recorder) -> int:
    """The step whose progress was told first."""
    return next(event["step"] for event in events.seen if event["event"] == "progress")


def steps_kept(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "work").glob("*/*/checkpoints/*"))
