"""Real trainings of two steps by the engine, of models of a few layers."""

from pathlib import Path
from typing import Any

import torch
from benchmarks.peak import peak_of
from engine_models import randomize
from stores import context, save_text

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    Architecture,
    DistillConfig,
    DocumentAttention,
    FinetuneConfig,
    resolved_losses,
)
from compression_pipeline.engines import State, Training
from compression_pipeline.engines.history import History
from compression_pipeline.megatron.engine import MegatronEngine
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.teacher_logits import Likeliest
from compression_pipeline.text.batches import TrainingData, TrainingSequences, ValidationData

LENGTH = 128

LLAMA: dict[str, Any] = {
    "layers": 4,
    "hidden_size": 192,
    "ffn_hidden_size": 512,
    "attention_heads": 6,
    "query_groups": 2,
    "head_dim": 32,
    "vocabulary_size": 1024,
}
NEMOTRON = LLAMA | {"family": "Nemotron", "activation": "SquaredReLU", "normalization": "LayerNorm1P"}
NEMOTRON |= {"rotary_fraction": 0.5}
QWEN = LLAMA | {"family": "Qwen3", "qk_norm": True}
TIED = LLAMA | {"tied_embeddings": True, "qkv_bias": True, "family": "Qwen2"}
NARROW = {"hidden_size": 128, "ffn_hidden_size": 320}


class Bench:
    """Trainings in a store of their own."""

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.attention, self.length = DocumentAttention.SHARED, LENGTH
        store = Store(folder)
        self._context, _ = context(store)
        self._engine = MegatronEngine(runtime, self._context)
        save_text(folder / "text", 20_000, 2_000)
        self._text = folder / "text"

    def peak(
        self, trained: Architecture, settings: FinetuneConfig | DistillConfig, teacher: Architecture | None
    ) -> int:
        return peak_of(lambda: self.train(trained, settings, teacher))

    def train(
        self, trained: Architecture, settings: FinetuneConfig | DistillConfig, teacher: Architecture | None = None
    ) -> tuple[History, State]:
        """What came of it: the figures and the weights."""
        training = Training(
            fingerprint="0" * 32,
            settings=settings,
            architecture=trained,
            data=TrainingData(
                self._text, settings, self._engine, sequence_length=self.length, attention=self.attention
            ),
            validation=ValidationData(self._text, sequence_length=self.length, samples=2, attention=self.attention),
            check=lambda loss, state: None,
        )
        model = self._model(trained)
        if teacher is None:
            return self._engine.train(model, training), self._engine.state(model)
        assert isinstance(settings, DistillConfig)
        losses = resolved_losses(settings.losses, teacher, trained)
        return self._engine.distill(model, self._model(teacher), training, of=teacher, losses=losses)

    def peak_of_teacher(self, teacher: Architecture, micro: int) -> int:
        """Beside its weights, of one micro-batch of the phase logits."""
        model = self._model(teacher)
        return peak_of(lambda: self._teach(model, micro))

    def _teach(self, model: Any, micro: int) -> Likeliest:
        text = TrainingSequences(
            self._text, 1, torch.device("cpu"), sequence_length=self.length, attention=self.attention
        )
        found = self._engine.logits(model, text.batch(range(micro)))
        return Likeliest.of(found, 8, (1.0,))

    def _model(self, of: Architecture) -> Any:
        model = self._engine.build(of, sequence_length=self.length)
        randomize(model)
        return model


def settings(kind: type[Any], micro: int, **more: Any) -> Any:
    return kind(steps=2, warmup_steps=0, global_batch_size=2 * micro, micro_batch_size=micro, **more)
