"""Value and gradient of a combined model's objective are those of two plain forward passes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interested import Interested
from pruned import PRUNED, pruned_store
from stores import TEACHER
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, mse_loss

from compression_pipeline.artifact import Store
from compression_pipeline.config import Chunks, DistillConfig, LossConfig
from compression_pipeline.config.losses import LOSSES
from compression_pipeline.huggingface import conversion
from compression_pipeline.huggingface.files import read_architecture
from compression_pipeline.losses import Signals, weighted_sum
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime

pytestmark = pytest.mark.usefixtures("shared_engine")


@pytest.fixture(params=[Chunks(1000, 1000), Chunks(37, 5)], ids=["one chunk", "chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 128 tokens of the batch are taken at once, or cut into chunks that do not divide them."""
    monkeypatch.setattr(Chunks, "of", lambda vocabulary, *, on_gpu: request.param)


def distillation(losses: list[dict[str, Any]]) -> list[LossConfig]:
    """The losses of a manifest."""
    return DistillConfig.model_validate({"steps": 1, "warmupSteps": 0, "losses": losses}).losses


def loaded(store: Store, name: str, engine: Runtime) -> Any:
    """The model of an artifact."""
    folder = store.open(name).model
    model = build(read_architecture(folder), engine, sequence_length=32)
    conversion.load_into(model, read_architecture(folder), folder)
    return model


def batch_of_random_text() -> Any:
    from compression_pipeline.text.batches import Batch

    tokens = torch.randint(0, 320, (4, 33), generator=torch.Generator().manual_seed(0))
    return Batch(tokens[:, :-1].contiguous(), torch.arange(32).expand(4, -1), tokens[:, 1:].contiguous())


def learned(student: Any, teacher: Any, objective: Any, batch: Any, expected: torch.Tensor) -> dict[str, Any]:
    """The student's parameters after a step's backward pass, whose loss is as expected."""
    from compression_pipeline.megatron.distillation import DistillationLoss, combine

    model = combine(student, teacher, objective)
    model.train()
    loss = DistillationLoss(model, objective)
    value = loss.reduce(loss.forward(model, batch), batch)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    return dict(model.named_parameters())


@pytest.mark.usefixtures("chunks")
def test_several_losses_are_those_of_two_plain_passes(tmp_path: Path, engine: Runtime) -> None:
    from compression_pipeline.megatron.objective import Objective

    store, batch = pruned_store(tmp_path), batch_of_random_text()
    teacher, student, plain = (loaded(store, name, engine) for name in (TEACHER, PRUNED, PRUNED))
    seen: dict[Any, torch.Tensor] = {}
    for whose, model, layer in (("teacher", teacher, 1), ("student", plain, 0)):
        model.decoder.layers[layer].register_forward_hook(
            lambda _, __, output, whose=whose: seen.__setitem__(whose, output[0])
        )
        model.embedding.register_forward_hook(
            lambda _, __, output, whose=whose: seen.__setitem__(f"{whose}'s embeddings", output)
        )
    with torch.no_grad():
        target = teacher.eval()(batch.tokens, batch.positions, None)
    logits = plain(batch.tokens, batch.positions, None)
    given = [
        {"type": "LogitsKL"},
        {"type": "CrossEntropy", "weight": 0.5},
        {"type": "HiddenStates", "distance": "MSE", "layerMap": [{"student": 1, "teacher": 2}], "weight": 2},
        {"type": "Embeddings"},
    ]
    losses = distillation(given)
    big, small = (read_architecture(store.open(name).model) for name in (TEACHER, PRUNED))
    objective = Objective.of(losses, big, small, engine, seed=1)
    states: Any = objective.losses[2:]
    hidden, embedded = states[0].comparisons[0].projection, states[1].comparison.projection
    divergence = kl_div(log_softmax(logits, -1), log_softmax(target, -1), reduction="none", log_target=True)
    expected = divergence.sum(-1).mean()
    expected = expected + 0.5 * cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
    expected = expected + 2 * mse_loss(hidden(seen["student"]), seen["teacher"])
    mine, theirs = embedded(seen["student's embeddings"]), seen["teacher's embeddings"]
    expected = expected + (1 - cosine_similarity(mine, theirs, dim=-1)).mean()
    names = [name for name, _ in plain.named_parameters()]
    gradients = torch.autograd.grad(expected, list(plain.parameters()))

    found = learned(student, teacher, objective, batch, expected)
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(found[name].grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(("kind", "masked"), [("llama3", False), ("qwen2-tied", True)])
@pytest.mark.parametrize(
    "given",
    [
        [{"type": "LogitsKL"}, {"type": "HiddenStates", "balance": "Dynamic"}, {"type": "Embeddings"}],
        [{"type": "CrossEntropy", "balance": "Dynamic", "weight": 2}, {"type": "LogitsKL", "temperature": 2}],
        [
            {"type": "HiddenStates", "balance": "Dynamic"},
            {"type": "LogitsMSE", "balance": "Dynamic", "weight": 3},
            {"type": "LogitsKL"},
            {"type": "CrossEntropy"},
        ],
        [{"type": "HiddenStates"}, {"type": "Embeddings", "weight": 0.5}],
        [{"type": "Interested", "weight": 0.5}, {"type": "LogitsKL"}, {"type": "CrossEntropy", "balance": "Dynamic"}],
        [{"type": "Interested"}],
    ],
    ids=lambda given: "+".join(one["type"] + one.get("balance", "") for one in given),
)
def test_the_sum_is_that_of_whole_signals(
    tmp_path: Path,
    engine: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    given: list[dict[str, Any]],
    kind: str,
    masked: bool,
) -> None:
    """What is Dynamic too, whose gradients must wait for all values; and where some tokens count nothing."""
    from compression_pipeline.megatron.objective import Objective

    monkeypatch.setitem(LOSSES, "Interested", Interested)
    store, batch, losses = pruned_store(tmp_path, kind), batch_of_random_text(), distillation(given)
    teacher, student, plain = (loaded(store, name, engine) for name in (TEACHER, PRUNED, PRUNED))
    big, small = (read_architecture(store.open(name).model) for name in (TEACHER, PRUNED))
    objective = Objective.of(losses, big, small, engine, seed=1)
    seen: list[Signals] = []
    for model in (plain, teacher.eval()):
        states: dict[Any, torch.Tensor] = {}
        handles = [
            layer.register_forward_hook(lambda m, _, out, states=states: states.__setitem__(m.layer_number, out[0]))
            for layer in model.decoder.layers
        ]
        handles.append(
            model.embedding.register_forward_hook(lambda _, __, out, states=states: states.__setitem__("words", out))
        )
        with torch.set_grad_enabled(model is plain):
            logits = model(batch.tokens, batch.positions, None).transpose(0, 1)
        seen.append(Signals(logits, states, states["words"], batch.labels.transpose(0, 1)))
        for handle in handles:
            handle.remove()
    if masked:
        weights = torch.full((4, 32), 1.25)
        weights[1:3, 5:20], weights[0] = 0, 0  # of one sequence nothing is learned
        batch = replace(batch, weights=weights)
    expected = weighted_sum(losses, [loss(*seen) for loss in objective.losses], batch.weights)
    expected.backward()
    projections = [(each, each.grad) for each in objective.parameters()]
    for parameter, _ in projections:
        parameter.grad = None

    found = learned(student, teacher, objective, batch, expected)
    pairs = [(found[name].grad, parameter.grad) for name, parameter in plain.named_parameters()]
    for mine, theirs in [*pairs, *((parameter.grad, before) for parameter, before in projections)]:
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * max(1.0, float(theirs.abs().max())))


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", ["llama3", "qwen2-tied"])
def test_the_gradient_is_that_of_two_plain_passes_and_kl_div(tmp_path: Path, engine: Runtime, kind: str) -> None:
    from compression_pipeline.megatron.distillation import DistillationLoss, combine
    from compression_pipeline.megatron.objective import Objective

    store, batch = pruned_store(tmp_path, kind), batch_of_random_text()
    teacher, student, plain = (loaded(store, name, engine) for name in (TEACHER, PRUNED, PRUNED))
    before = {name: tensor.detach().clone() for name, tensor in teacher.named_parameters()}
    with torch.no_grad():
        target = log_softmax(teacher.eval()(batch.tokens, batch.positions, None), -1)
    found = log_softmax(plain(batch.tokens, batch.positions, None), -1)
    expected = kl_div(found, target, reduction="none", log_target=True).sum(-1).mean()
    expected.backward()

    big, small = (read_architecture(store.open(name).model) for name in (TEACHER, PRUNED))
    objective = Objective.of(distillation([{"type": "LogitsKL"}]), big, small, engine, seed=1)
    model = combine(student, teacher, objective)
    model.train()
    loss = DistillationLoss(model, objective)
    value = loss.reduce(loss.forward(model, batch), batch)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert parameters.keys() == dict(plain.named_parameters()).keys()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameters[name].grad, parameter.grad, rtol=1e-4, atol=1e-7)

    # Frozen: eval mode within a training model, no gradients, none of it in what is saved.
    assert model.training
    assert not teacher.training
    for name, parameter in teacher.named_parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert torch.equal(parameter, before[name])
    assert set(model.state_dict()) == set(plain.state_dict())
    assert not any("teacher" in name for name in model.sharded_state_dict())
