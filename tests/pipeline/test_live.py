"""A model whose weights are in memory is scored as its checkpoint is, and nothing random moves for it."""

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from checkpoints import save_model, save_tokenizer
from task_folders import fetch_task
from transformers import AutoModelForCausalLM, AutoTokenizer

from compression_pipeline.config import EvaluateConfig, Precision, TaskConfig
from compression_pipeline.huggingface.conversion import CheckpointReader
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.huggingface.names import expected_shapes
from compression_pipeline.tasks.live import live_model, score_live
from compression_pipeline.tasks.scoring import score

CPU = torch.device("cpu")


def from_disk(folder: Path) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model.to(torch.float32).eval()


@pytest.mark.parametrize("kind", ["llama31", "qwen2-tied", "nemotron"])
def test_a_live_model_is_the_checkpoint_s(tmp_path: Path, kind: str) -> None:
    save_model(tmp_path, kind)
    save_tokenizer(tmp_path)
    architecture, reader = read_architecture(tmp_path), CheckpointReader(tmp_path)
    live = live_model(
        ((name, reader(name)) for name in expected_shapes(architecture)),
        architecture,
        template=tmp_path,
        rounded=torch.bfloat16,
        computed=torch.float32,
        device=CPU,
    )
    written = from_disk(tmp_path)
    tokens = torch.arange(1, 30)[None]
    assert torch.equal(live(tokens).logits, written(tokens).logits)
    assert live.generation_config.to_dict() == written.generation_config.to_dict()


def test_its_scores_are_the_checkpoint_s_and_no_generator_moves(tmp_path: Path, tiny_teacher: Path) -> None:
    tasks = tmp_path / "store" / "artifacts" / fetch_task(tmp_path, tmp_path / "store")
    settings = EvaluateConfig(tasks=[TaskConfig(name="calls", shots=1)], batch_size=4)
    architecture, reader = read_architecture(tiny_teacher), CheckpointReader(tiny_teacher)
    ticks: list[tuple[int, int]] = []
    before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    scores = score_live(
        ((name, reader(name)) for name in expected_shapes(architecture)),
        architecture,
        template=tiny_teacher,
        tasks=tasks,
        settings=settings,
        rounded=torch.bfloat16,
        precision=Precision.FP32,
        device=CPU,
        tick=lambda done, total: ticks.append((done, total)),
    )
    after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index]
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])
    expected, _ = score(from_disk(tiny_teacher), AutoTokenizer.from_pretrained(tiny_teacher), tasks, settings)
    assert scores == expected and ticks
