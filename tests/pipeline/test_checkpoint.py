"""What a checkpoint restores, and what is left of checkpoints when."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy
import pytest
import torch
from engine_models import architecture, randomize
from stores import Recorder

from compression_pipeline.artifact import Store
from compression_pipeline.config import FinetuneConfig
from compression_pipeline.context import Context
from compression_pipeline.launcher.heartbeat import Heartbeat
from compression_pipeline.megatron.checkpoint import Checkpoints
from compression_pipeline.megatron.data import Batch
from compression_pipeline.megatron.history import History, StepEntry, ValidationEntry
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.optimizer import Optimizer
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.training import LanguageModelLoss, data_parallel

FINGERPRINT = "a" * 32


class Trained:
    """A model and its optimizer, `steps` steps along."""

    def __init__(self, engine: Runtime, steps: int, seed: int = 0) -> None:
        self.model = build(architecture(layers=1), engine, sequence_length=16)
        randomize(self.model, seed)
        self._wrapped = data_parallel(self.model)
        self.optimizer = Optimizer(self._wrapped, FinetuneConfig(steps=10), engine)
        for step in range(steps):
            self.step(step)

    def step(self, seed: int) -> None:
        """One step of plain cross entropy on random tokens."""
        tokens = torch.randint(0, 320, (4, 17), generator=torch.Generator().manual_seed(seed))
        batch = Batch(tokens[:, :-1], torch.arange(16).expand(4, -1), tokens[:, 1:])
        self._wrapped.zero_grad_buffer()
        self.optimizer.zero_gradients()
        loss = LanguageModelLoss()
        loss.reduce(loss.forward(self._wrapped, batch), batch).backward()
        self._wrapped.finish_grad_sync()
        self.optimizer.step(1e-2, self.optimizer.gradient_norm())

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


def checkpoints(
    root: Path, engine: Runtime, attempt: int = 1, keep: int = 2, launch: str | None = None
) -> tuple[Checkpoints, Recorder]:
    store, events = Store(root), Recorder()
    folder = store.attempt_folder(FINGERPRINT, attempt, launch)
    return Checkpoints(Context(store, events, folder, launch=launch), FINGERPRINT, engine, keep=keep), events


def save(kept: Checkpoints, trained: Trained, step: int, history: History | None = None) -> Path:
    return kept.save(step, cast("Any", trained.model), trained.optimizer, history or History(10))


def load(kept: Checkpoints, trained: Trained) -> Any:
    return kept.load(cast("Any", trained.model), trained.optimizer)


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root / "work" / FINGERPRINT)) for path in root.glob("work/*/*/checkpoints/*"))


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


def test_the_files_are_the_format_that_megatron_writes(tmp_path: Path, engine: Runtime) -> None:
    from megatron.core import dist_checkpointing

    trained = Trained(engine, 2)
    path = save(checkpoints(tmp_path, engine)[0], trained, 2)
    plain = dist_checkpointing.load_plain_tensors(str(path))
    for name, weight in trained.weights().items():
        # Megatron's own names of the norms before linear layers, as Transformer Engine fuses them.
        key = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
        key = key.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_").replace("layers.0.", "layers.")
        assert torch.equal(plain[key].reshape(weight.shape), weight), name


@pytest.mark.parametrize(
    "manifest", ["", "[]", "{}", '{"files": 3}', json.dumps({"files": {"common.pt": {}}})], ids=str
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
