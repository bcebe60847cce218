"""Every loss is its formula in float64, in value and gradient, and ModelOpt's where ModelOpt has it."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_models import architecture
from torch import Tensor

from compression_pipeline.config import (
    Architecture,
    Balance,
    LossConfig,
    describe_losses,
    losses_in_words,
    resolved_losses,
)
from compression_pipeline.config.losses import LOSSES, loss_faults
from compression_pipeline.losses import Signals, build_loss
from compression_pipeline.megatron.modelopt import modelopt
from compression_pipeline.megatron.runtime import Runtime

VOCABULARY = 41


def numbers(*shape: int, seed: int, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def probabilities(logits: Tensor, temperature: float = 1) -> Tensor:
    powers = (logits / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def kl(first: Tensor, second: Tensor) -> Tensor:
    return (first * (first / second).log()).sum(-1)


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    return 1 - (first * second).sum(-1) / (first.square().sum(-1).sqrt() * second.square().sum(-1).sqrt())


def top(student: Tensor, teacher: Tensor, count: int, temperature: float) -> Tensor:
    words = teacher.argsort(-1, descending=True)[..., :count]
    return kl(*(probabilities(each.gather(-1, words), temperature) for each in (teacher, student)))


def shannon(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    mine, theirs = probabilities(student, temperature), probabilities(teacher, temperature)
    middle = (mine + theirs) / 2
    return (kl(theirs, middle) + kl(mine, middle)) / 2


Naive = Callable[[Tensor, Tensor], Tensor]
ON_LOGITS: list[tuple[dict[str, Any], Naive]] = [
    ({"type": "LogitsKL"}, lambda s, t: kl(probabilities(t), probabilities(s))),
    ({"type": "LogitsKL", "temperature": 2.5}, lambda s, t: kl(probabilities(t, 2.5), probabilities(s, 2.5))),
    ({"type": "LogitsReverseKL"}, lambda s, t: kl(probabilities(s), probabilities(t))),
    ({"type": "LogitsReverseKL", "temperature": 0.5}, lambda s, t: kl(probabilities(s, 0.5), probabilities(t, 0.5))),
    ({"type": "LogitsJensenShannon"}, lambda s, t: shannon(s, t, 1)),
    ({"type": "LogitsJensenShannon", "temperature": 3}, lambda s, t: shannon(s, t, 3)),
    ({"type": "LogitsTopKKL", "topK": 7}, lambda s, t: top(s, t, 7, 1)),
    ({"type": "LogitsTopKKL", "topK": VOCABULARY, "temperature": 2}, lambda s, t: top(s, t, VOCABULARY, 2)),
    ({"type": "LogitsMSE"}, lambda s, t: (s - t).square().sum(-1) / VOCABULARY),
    ({"type": "LogitsCosine"}, cosine_distance),
]
NAMES = ["-".join(map(str, given.values())) for given, _ in ON_LOGITS]


def loss_of(given: Mapping[str, Any]) -> LossConfig:
    fields = {key: value for key, value in given.items() if key != "type"}
    return LOSSES[given["type"]].model_validate(fields)


def built(given: Mapping[str, Any], teacher: Architecture | None = None, student: Architecture | None = None) -> Any:
    return build_loss(loss_of(given), teacher or architecture(), student or architecture())


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
@pytest.mark.parametrize(("given", "naive"), ON_LOGITS, ids=NAMES)
def test_a_loss_on_logits_is_its_formula(given: dict[str, Any], naive: Naive, scale: float) -> None:
    student = numbers(5, 3, VOCABULARY, seed=0, scale=scale).requires_grad_()
    teacher = numbers(5, 3, VOCABULARY, seed=1, scale=scale)
    weights = torch.rand(5, 3, generator=torch.Generator().manual_seed(2))
    exact = student.detach().double().requires_grad_()
    expected = naive(exact, teacher.double())
    (gradient,) = torch.autograd.grad((expected * weights).sum(), exact)
    found = built(given)(Signals(student), Signals(teacher))
    assert (found.shape, found.dtype) == ((5, 3), torch.float32)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    (mine,) = torch.autograd.grad((found * weights).sum(), student)
    torch.testing.assert_close(mine.double(), gradient, rtol=1e-4, atol=1e-5 * max(1.0, gradient.abs().max().item()))


@pytest.mark.parametrize(("given", "naive"), ON_LOGITS, ids=NAMES)
def test_half_precision_is_computed_in_single_and_nothing_is_overwritten(given: dict[str, Any], naive: Naive) -> None:
    student = numbers(4, 1, VOCABULARY, seed=0, dtype=torch.bfloat16).requires_grad_()
    teacher = numbers(4, 1, VOCABULARY, seed=1, dtype=torch.bfloat16)
    before = student.detach().clone(), teacher.clone()
    found = built(given)(Signals(student), Signals(teacher))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), naive(student.detach().double(), teacher.double()), rtol=3e-2, atol=1e-4)
    (gradient,) = torch.autograd.grad(found.mean(), student)
    assert gradient.dtype == torch.bfloat16
    assert torch.equal(student, before[0]) and torch.equal(teacher, before[1])


@pytest.mark.parametrize(("given", "naive"), ON_LOGITS, ids=NAMES)
def test_what_is_matched_costs_nothing(given: dict[str, Any], naive: Naive) -> None:
    student = numbers(4, 1, VOCABULARY, seed=0).requires_grad_()
    found = built(given)(Signals(student), Signals(student.detach().clone()))
    found.sum().backward()
    assert found.abs().max() < 1e-6 and student.grad is not None and student.grad.abs().max() < 1e-6


def test_jensen_shannon_is_symmetric_and_at_most_log_2() -> None:
    loss = built({"type": "LogitsJensenShannon"})
    one, other = (Signals(numbers(9, 1, VOCABULARY, seed=seed, scale=40)) for seed in (0, 1))
    torch.testing.assert_close(loss(one, other), loss(other, one))
    assert (loss(one, other) <= 0.6932).all() and (loss(one, other) > 0.5).any()


def test_cross_entropy_is_minus_the_log_of_the_next_tokens_probability() -> None:
    student = numbers(5, 3, VOCABULARY, seed=0).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (5, 3), generator=torch.Generator().manual_seed(4))
    exact = student.detach().double().requires_grad_()
    expected = -probabilities(exact).gather(-1, labels[..., None])[..., 0].log()
    found = built({"type": "CrossEntropy"})(Signals(student, labels=labels), Signals(student.detach()))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(each.sum(), logits)[0] for each, logits in ((found, student), (expected, exact))]
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-4, atol=1e-6)


DISTANCES: dict[str, Naive] = {"MSE": lambda s, t: (s - t).square().mean(-1), "Cosine": cosine_distance}


@pytest.mark.parametrize("width", [32, 24])
@pytest.mark.parametrize("distance", DISTANCES)
def test_states_are_compared_at_the_teachers_width(distance: str, width: int) -> None:
    big, small = architecture(hidden_size=32), architecture(hidden_size=width)
    hidden = {"type": "HiddenStates", "distance": distance, "layerMap": [{"student": 1, "teacher": 2}]}
    embeddings = {"type": "Embeddings", "distance": distance}
    mine = numbers(5, 3, width, seed=0).requires_grad_()
    theirs = numbers(5, 3, 32, seed=1)
    nothing = torch.zeros(5, 3, VOCABULARY)
    for given, comparison in (
        (hidden, lambda loss: loss.comparisons[0]),
        (embeddings, lambda loss: loss.comparison),
    ):
        loss = built(given, big, small)
        projection = comparison(loss).projection
        assert (projection is None) == (width == 32)
        matrix = torch.eye(32) if projection is None else projection.weight.detach()
        exact = mine.detach().double().requires_grad_()
        expected = DISTANCES[distance](exact @ matrix.double().T, theirs.double())
        found = loss(Signals(nothing, {1: mine}, mine), Signals(nothing, {2: theirs}, theirs))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
        gradients = [torch.autograd.grad(each.sum(), state)[0] for each, state in ((found, mine), (expected, exact))]
        torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-4, atol=1e-6)


def test_several_pairs_of_layers_count_alike() -> None:
    sizes = architecture(layers=8)
    given = {"type": "HiddenStates", "distance": "MSE"}
    assert loss_of(given).needs(sizes, architecture(layers=4)).hidden == ((1, 2), (2, 4), (3, 6), (4, 8))
    assert loss_of(given).needs(sizes, architecture(layers=2)).hidden == ((1, 4), (2, 8))
    assert loss_of(given).needs(sizes, architecture(layers=6)).hidden == ((1, 2), (3, 4), (4, 6), (6, 8))
    loss = built(given, sizes, architecture(layers=2))
    states = {layer: numbers(5, 3, sizes.hidden_size, seed=layer) for layer in (1, 2, 4, 8)}
    nothing = torch.zeros(5, 3, VOCABULARY)
    one, two = (DISTANCES["MSE"](states[mine], states[theirs]) for mine, theirs in ((1, 4), (2, 8)))
    torch.testing.assert_close(loss(Signals(nothing, states), Signals(nothing, states)), (one + two) / 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"type": "LogitsTopKKL", "topK": 999},
            "losses[0].topK: 999 is more than the 320 tokens of the teacher's vocabulary; lower it",
        ),
        (
            {"type": "HiddenStates", "layerMap": [{"student": 1, "teacher": 1}, {"student": 3, "teacher": 9}]},
            "losses[0].layerMap[1].student: the student has layers 1 to 2; there is no layer 3\n"
            "losses[0].layerMap[1].teacher: the teacher has layers 1 to 4; there is no layer 9",
        ),
    ],
)
def test_what_models_of_these_sizes_do_not_have_is_told(given: dict[str, Any], said: str) -> None:
    found = loss_faults([loss_of(given)], architecture(layers=4), architecture(layers=2))
    assert "\n".join(f"{path}: {sentence}" for path, sentence in found).startswith(said)


@pytest.mark.parametrize(("layers", "kinds"), [(8, 1), (5, 1), (4, 3), (2, 3)])
def test_auto_is_logits_alone_unless_depth_is_cut_a_lot(layers: int, kinds: int) -> None:
    found = resolved_losses([LOSSES["Auto"](weight=2)], architecture(layers=8), architecture(layers=layers))
    assert [loss.type for loss in found] == ["LogitsKL", "HiddenStates", "Embeddings"][:kinds]
    assert {loss.weight for loss in found} == {2}
    needs = LOSSES["Auto"]().needs(architecture(layers=8), architecture(layers=layers))
    assert (needs.logits, bool(needs.hidden), needs.embeddings) == (True, kinds == 3, kinds == 3)
    beside = resolved_losses(
        [LOSSES["Auto"](balance=Balance.DYNAMIC)], architecture(layers=8), architecture(layers=layers)
    )
    assert {loss.balance for loss in beside} == {Balance.DYNAMIC}, "nothing that a user wrote is dropped"
    assert losses_in_words(found).startswith("2 times the forward KL")
    assert losses_in_words(found).count("scaled in every sequence to the loss on the logits") == kinds - 1


def test_why_stands_behind_what_auto_chose() -> None:
    losses = [LOSSES[kind]() for kind in ("Auto", "CrossEntropy")]
    words = LOSSES["CrossEntropy"]().words
    whole, shallow = (describe_losses(losses, architecture(layers=8), architecture(layers=left)) for left in (8, 4))
    assert whole.endswith(f"(Auto, because the student keeps 8 of 8 layers); plus {words}")
    assert shallow.endswith(f"(these 3: Auto, because the student keeps 4 of 8 layers); plus {words}")


@pytest.mark.parametrize("kind", ["LogitsTopKKL", "LogitsReverseKL"])
def test_the_loss_is_modelopts(engine: Runtime, kind: str) -> None:
    config: Any = SimpleNamespace(tensor_model_parallel_size=1, sequence_parallel=False)
    student, teacher = numbers(6, 2, VOCABULARY, seed=0).requires_grad_(), numbers(6, 2, VOCABULARY, seed=1)
    given = {"type": kind, "temperature": 1.5} | ({"topK": 9} if kind == "LogitsTopKKL" else {})
    found = built(given)(Signals(student), Signals(teacher))
    with modelopt():
        from modelopt.torch.distill.plugins.megatron import LogitsKLLoss, TopKLogitsKLLoss

        if kind == "LogitsTopKKL":
            theirs: Any = TopKLogitsKLLoss(config, temperature=1.5, top_k=9)
        else:
            theirs = LogitsKLLoss(config, temperature=1.5, reverse=True)
        expected, *_ = theirs((student, None), (teacher, None))
    torch.testing.assert_close(found.transpose(0, 1), expected, rtol=1e-5, atol=1e-6)
    one, other = (torch.autograd.grad(each.mean(), student)[0] for each in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
