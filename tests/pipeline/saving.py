"""Models that are trained a little, and their checkpoints."""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import torch
from engine_models import architecture, randomize
from stores import Recorder

from compression_pipeline.artifact import Store
from compression_pipeline.config import FinetuneConfig
from compression_pipeline.context import Context
from compression_pipeline.engines.history import History
from compression_pipeline.megatron.checkpoint import Checkpoints
from compression_pipeline.megatron.loss_function import LanguageModelLoss
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.optimizer import Optimizer
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.megatron.training import data_parallel
from compression_pipeline.text.batches import Batch

FINGERPRINT = "a" * 32


class Trained:
    """A model and its optimizer, `steps` steps along."""

    def __init__(self, engine: Runtime, steps: int, seed: int = 0, **fields: int) -> None:
        self.model = build(architecture(**{"layers": 1, **fields}), engine, sequence_length=16)
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


def replace_file(checkpoint: Path, name: str, content: bytes) -> None:
    """Put `content` in a file's place and make the manifest tell of it, as whoever may write into the store can."""
    (checkpoint / name).write_bytes(content)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
