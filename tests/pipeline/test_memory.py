"""The memory that is planned is the memory that real trainings take, part by part and within 15 % in all."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import architecture
from interested import Interested
from training_bench import LENGTH, LLAMA, NARROW, NEMOTRON, QWEN, TIED, Bench, settings

from compression_pipeline import teacher_logits
from compression_pipeline.config import (
    Architecture,
    DistillConfig,
    DocumentAttention,
    FinetuneConfig,
    Precision,
    Recomputation,
    resolved_losses,
)
from compression_pipeline.config.losses import LOSSES
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.sizing import Memory, find_gpu, forward_memory, training_memory

TOLERANCE = 0.15


@pytest.fixture
def bench(tmp_path: Path, engine: Runtime) -> Bench:
    return Bench(tmp_path, engine)


def planned(trained: Architecture, micro: int, precision: Precision = Precision.FP32, **more: Any) -> Memory:
    return training_memory(
        trained, micro_batch_size=micro, sequence_length=LENGTH, precision=precision, copies=1, on_gpu=False, **more
    )


@pytest.mark.parametrize(
    ("shape", "micro"), [(LLAMA, 2), (NEMOTRON, 8), (QWEN, 8), (TIED, 4)], ids=["llama", "nemotron", "qwen3", "tied"]
)
def test_a_training(bench: Bench, shape: dict[str, Any], micro: int) -> None:
    model = architecture(**shape)
    measured = bench.peak(model, settings(FinetuneConfig, micro), None)
    assert planned(model, micro).total == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("what", [Recomputation.SELECTIVE, Recomputation.FULL])
def test_a_training_that_recomputes(bench: Bench, what: Recomputation) -> None:
    """It takes what is planned for it, and that is not what is planned for one that keeps all."""
    teacher, student = architecture(**LLAMA), architecture(**LLAMA | NARROW)
    chosen = settings(DistillConfig, 8, activation_recomputation=what)
    measured = bench.peak(student, chosen, teacher)
    told = {"teacher": teacher, "losses": chosen.losses}
    assert planned(student, 8, **told, recomputation=what).total == pytest.approx(measured, rel=TOLERANCE)
    assert planned(student, 8, **told).total != pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("groups", [1, 2])
def test_documents_that_do_not_see_each_other(bench: Bench, groups: int) -> None:
    """One mask for all layers of both models, and keys and values repeated where heads share them."""
    bench.attention, bench.length = DocumentAttention.ISOLATED, 8 * LENGTH
    small = {"hidden_size": 32, "ffn_hidden_size": 64, "attention_heads": 2, "head_dim": 16, "vocabulary_size": 320}
    shape = LLAMA | small | {"query_groups": groups, "max_position_embeddings": bench.length}
    teacher, student = architecture(**shape), architecture(**shape | {"ffn_hidden_size": 32})
    chosen = settings(DistillConfig, 2)
    measured = bench.peak(student, chosen, teacher)
    told = {"micro_batch_size": 2, "sequence_length": bench.length, "precision": Precision.FP32, "copies": 1}
    found = training_memory(student, **told, on_gpu=False, teacher=teacher, losses=chosen.losses, isolated=True)
    assert found.total == pytest.approx(measured, rel=TOLERANCE)
    mask = 2 * bench.length**2 * 4
    assert found.total - mask < (1 - TOLERANCE) * measured, "it would be noticed"
    assert abs(found.total - measured) < bench.length**2, "nearer than with the booleans, which are gone by then"


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "Auto"])
def test_a_distillation_with_each_loss(bench: Bench, name: str) -> None:
    teacher, student = architecture(**LLAMA), architecture(**LLAMA | NARROW)
    chosen = settings(DistillConfig, 4, losses=[{"type": name, **({"topK": 8} if name == "LogitsTopKKL" else {})}])
    measured = bench.peak(student, chosen, teacher)
    assert planned(student, 4, teacher=teacher, losses=chosen.losses).total == pytest.approx(measured, rel=TOLERANCE)


def test_a_distillation_with_a_loss_that_takes_all_logits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "Interested", Interested)
    teacher, student = architecture(**LLAMA), architecture(**LLAMA | NARROW)
    chosen = settings(DistillConfig, 4, losses=[{"type": "Interested"}])
    measured = bench.peak(student, chosen, teacher)
    assert planned(student, 4, teacher=teacher, losses=chosen.losses).total == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("sizes", "vocabulary"), [(NARROW, 4096), ({"layers": 2}, 512)], ids=["width and words", "depth"]
)
def test_a_distillation_by_the_rule(bench: Bench, sizes: dict[str, int], vocabulary: int) -> None:
    teacher = architecture(**LLAMA | {"vocabulary_size": vocabulary})
    student = architecture(**LLAMA | {"vocabulary_size": vocabulary} | sizes)
    chosen = settings(DistillConfig, 4, losses=[{"type": "Auto"}])
    losses = resolved_losses(chosen.losses, teacher, student)
    measured = bench.peak(student, chosen, teacher)
    assert planned(student, 4, teacher=teacher, losses=losses).total == pytest.approx(measured, rel=TOLERANCE)


def test_a_distillation_in_bfloat16(tmp_path: Path, engine: Runtime) -> None:
    """The arithmetic of GPUs, by the same code: no manifest gets it on a CPU."""
    bench = Bench(tmp_path, dataclasses.replace(engine, dtype=torch.bfloat16))
    teacher, student = architecture(**LLAMA), architecture(**LLAMA | NARROW)
    chosen = settings(DistillConfig, 4)
    measured = bench.peak(student, chosen, teacher)
    of_bfloat16 = planned(student, 4, Precision.BF16, teacher=teacher, losses=chosen.losses)
    assert of_bfloat16.total == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("vocabulary", "micro", "isolated"), [(4096, 8, False), (4096, 1, False), (512, 8, False), (512, 4, True)]
)
def test_a_teacher_that_runs_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, vocabulary: int, micro: int, isolated: bool
) -> None:
    monkeypatch.setattr(teacher_logits, "CHUNK", 2**12)  # few of so many logits, as of real ones
    bench.attention = DocumentAttention.ISOLATED if isolated else DocumentAttention.SHARED
    teacher = architecture(**LLAMA | {"vocabulary_size": vocabulary})
    measured = bench.peak_of_teacher(teacher, micro)
    told: dict[str, Any] = {"micro_batch_size": micro, "sequence_length": LENGTH, "precision": Precision.FP32}
    found = forward_memory(teacher, **told, isolated=isolated)
    assert found.total - found.teacher == pytest.approx(measured, rel=TOLERANCE)
    assert found.teacher == 4 * teacher.parameters


def test_ranks_share_the_state_of_the_optimizer_alone() -> None:
    model, told = architecture(**LLAMA), {"micro_batch_size": 1, "sequence_length": 8, "precision": Precision.BF16}
    alone, shared = (training_memory(model, copies=copies, **told) for copies in (1, 8))
    assert alone.optimizer == 12 * model.parameters
    assert shared == dataclasses.replace(alone, optimizer=-(-alone.optimizer // 8))


def test_the_published_recipe_on_one_h200() -> None:
    """By arithmetic: 97.3 GB of weights, gradients and states, 29.3 GB of activations (8B to 4B). Logits of all tokens
    would add 18.9 GB; so it fits one H200 by chunks of them alone.
    """
    teacher = architecture(
        layers=32, hidden_size=4096, ffn_hidden_size=14336, attention_heads=32, query_groups=8, head_dim=128,
        vocabulary_size=128256,
    )  # fmt: skip
    student = teacher.model_copy(update={"hidden_size": 3072, "ffn_hidden_size": 9216})
    found = training_memory(
        student,
        micro_batch_size=1,
        sequence_length=8192,
        precision=Precision.BF16,
        copies=1,
        teacher=teacher,
        losses=DistillConfig(steps=100).losses,
    )
    assert found.weights + found.gradients + found.optimizer + found.teacher == pytest.approx(97.3e9, rel=0.001)
    assert found.activations == pytest.approx(29.3e9, rel=0.01)
    assert found.logits < 2.5e9
    h200 = find_gpu("NVIDIA H200")
    assert h200 is not None and found.total < h200.memory
