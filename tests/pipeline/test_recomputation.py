"""What the backward pass computes again is what was computed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import architecture
from training_bench import LLAMA, NARROW, QWEN, Bench, settings

from compression_pipeline.config import DistillConfig, FinetuneConfig, Recomputation
from compression_pipeline.errors import UserError
from compression_pipeline.megatron import recomputation
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.sizing import Memory, least_recomputation


def trained(folder: Path, engine: Runtime, what: Recomputation, kind: Any, *models: Any, **more: Any) -> Any:
    history, state = Bench(folder / what, engine).train(
        models[0], settings(kind, 2, activation_recomputation=what, **more), *models[1:]
    )
    return [step.loss for step in history.train], {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("teaches", [False, True], ids=["finetune", "distill"])
def test_the_result_is_the_same_to_the_bit(
    tmp_path: Path, engine: Runtime, teaches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With losses that look into layers, too: their gradients go through what is computed again."""
    calls: list[object] = []
    original = recomputation.checkpoint
    monkeypatch.setattr(recomputation, "checkpoint", lambda *a, **k: calls.append(a) or original(*a, **k))
    teacher, student = architecture(**QWEN), architecture(**QWEN | NARROW)
    losses = [{"type": "LogitsKL"}, {"type": "HiddenStates"}, {"type": "Embeddings"}]
    told = (DistillConfig, student, teacher) if teaches else (FinetuneConfig, student)
    more = {"losses": losses} if teaches else {}
    kept, weights = trained(tmp_path, engine, Recomputation.NONE, *told, **more)
    assert not calls and len(set(kept)) == 2, "it learns"
    for what in (Recomputation.SELECTIVE, Recomputation.FULL):
        found, others = trained(tmp_path, engine, what, *told, **more)
        assert found == kept
        assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
        assert calls, "something was computed again"
        calls.clear()


def test_auto_takes_the_least_that_fits() -> None:
    needs = {Recomputation.NONE: 100, Recomputation.SELECTIVE: 60, Recomputation.FULL: 30}

    def memory(*, recomputation: Recomputation) -> Memory:
        return Memory(0, 0, 0, 0, needs[recomputation], 0)

    def of(room: int | None, asked: Recomputation = Recomputation.AUTO) -> Recomputation:
        return least_recomputation(asked, memory, room)

    assert [of(room) for room in (None, 200, 100, 64, 63, 1)] == [
        Recomputation.NONE,
        Recomputation.NONE,
        Recomputation.SELECTIVE,
        Recomputation.SELECTIVE,
        Recomputation.FULL,
        Recomputation.FULL,
    ]
    assert of(1, Recomputation.NONE) is Recomputation.NONE and of(None, Recomputation.FULL) is Recomputation.FULL


@pytest.mark.parametrize(
    ("micro", "what", "told"),
    [
        (64, "None", "of which activations are .*: set activationRecomputation: Full, or lower microBatchSize"),
        (64, "Full", "of which .*: lower microBatchSize or dataset.sequenceLength$"),
        (1, "None", "of which optimizer are .*: use more GPUs, whose copies of the model share the optimizer's state$"),
    ],
)
def test_a_gpu_that_is_full_is_told_with_what_is_largest(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch, micro: int, what: str, told: str
) -> None:
    """The fault is injected: no CPU says so."""

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")

    monkeypatch.setattr("compression_pipeline.megatron.loss_function.LanguageModelLoss.forward", full)
    asked = settings(FinetuneConfig, micro, activation_recomputation=what)
    with pytest.raises(UserError, match=rf"^the GPU is out of memory \(.*GPU 0 has\); .*{told}"):
        Bench(tmp_path, engine).train(architecture(**LLAMA), asked)


def test_auto_keeps_all_on_a_cpu(tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputation, "checkpoint", pytest.fail)
    Bench(tmp_path, engine).train(architecture(**LLAMA), settings(FinetuneConfig, 2))
