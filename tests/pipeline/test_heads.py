"""Output layers and losses over chunks of tokens are those of all logits, in value, gradient and type; and no tensor of
tokens times vocabulary is made.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from benchmarks.peak import peak_of
from engine_models import architecture
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from compression_pipeline.config import Chunks, LossConfig
from compression_pipeline.config.chunks import BLOCK, ENOUGH, PART, PRODUCT, even, tokens_per_chunk
from compression_pipeline.config.losses import LOSSES
from compression_pipeline.losses import Head, Heads, Loss, Signals, build_loss
from compression_pipeline.losses.fused import fused
from compression_pipeline.losses.logits_kl import forward_kl
from compression_pipeline.sizing.memory import losses_memory

SIZES = architecture()
TEACHER, STUDENT = architecture(hidden_size=24, vocabulary_size=640), architecture(hidden_size=16, vocabulary_size=640)


def config(name: str, **fields: Any) -> LossConfig:
    return LOSSES[name].model_validate({**({"topK": 2} if name == "LogitsTopKKL" else {}), **fields})


PER_TOKEN = [name for name in LOSSES if name != "Auto" and config(name).needs(SIZES, SIZES).per_token]


class Case:
    """Two models' last hidden states and output layers, and a text."""

    def __init__(
        self,
        sequence: int,
        batch: int,
        vocabulary: int,
        widths: tuple[int, int] = (5, 8),
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        tied: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.labels = torch.randint(0, vocabulary, (sequence, batch), generator=generator)
        self.hidden, self.weight = numbers(sequence, batch, widths[0]), numbers(vocabulary, widths[0])
        self.teacher = Head(numbers(sequence, batch, widths[1]), numbers(vocabulary, widths[1]))
        for tensor in (self.hidden, self.weight):
            tensor.requires_grad_()
        self.tied = tied

    @property
    def student(self) -> Head:
        """Where it is tied, the hidden states are made of the embeddings, which are the output layer's weight."""
        embedded = self.weight[self.labels] if self.tied else 0
        return Head(self.hidden * 0.7 + embedded, self.weight)

    def whole(self, losses: Sequence[Loss]) -> Tensor:
        """Values from all logits, [losses, sequence, batch]."""
        student = self.student
        signals = Signals(linear(student.hidden, student.weight), labels=self.labels), Signals(self.teacher.logits())
        return torch.stack([loss(*signals) for loss in losses])

    def gradients(self, total: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(total, [self.hidden, self.weight, *more])


def losses_of(*given: Mapping[str, Any]) -> list[Loss]:
    return [build_loss(config(**fields), SIZES, SIZES) for fields in given]


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest number."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    found, expected = found.detach(), expected.detach()
    assert (found - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


TEMPERED = ("LogitsKL", "LogitsReverseKL", "LogitsJensenShannon", "LogitsTopKKL")
SUMS: list[list[dict[str, Any]]] = [
    *([{"name": name}] for name in PER_TOKEN),
    *([{"name": name, "temperature": 2.5}] for name in TEMPERED),
    *([{"name": name, "temperature": 0.5}] for name in TEMPERED),
    [{"name": "LogitsTopKKL", "topK": 33}],
    [{"name": "LogitsKL"}, {"name": "CrossEntropy"}],
    [{"name": name} for name in PER_TOKEN],
]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("chunks", [Chunks(7, 3), Chunks(1, 1), Chunks(100, 100)], ids=["several", "single", "one"])
@pytest.mark.parametrize("given", SUMS, ids=lambda given: "+".join("-".join(map(str, one.values())) for one in given))
def test_every_loss_is_that_of_all_logits(given: list[dict[str, Any]], chunks: Chunks, tied: bool) -> None:
    """The weights are of no kind: of a token, of a sequence, one number; and some tokens count nothing."""
    losses, case = losses_of(*given), Case(11, 3, 33, tied=tied)
    masked = torch.rand(11, 3, generator=torch.Generator().manual_seed(9))
    masked[4:6, 1] = 0
    weights = [(masked, torch.tensor([[0.5, 0.0, 2.0]]), 0.3)[n % 3] for n in range(len(losses))]
    values = case.whole(losses)
    expected = sum((weight * value).sum() for weight, value in zip(weights, values, strict=True))
    assert isinstance(expected, Tensor)
    gradients = case.gradients(expected / 4)
    heads = Heads(losses, case.student, case.teacher, case.labels, chunks)
    total, found = heads.weighted(weights)
    near(total, expected)
    near(found, values.detach())
    assert torch.equal(heads.values(), found)
    assert not found.requires_grad
    for mine, theirs in zip(case.gradients(total / 4), gradients, strict=True):
        near(mine, theirs)


TERM = st.tuples(st.sampled_from(PER_TOKEN), st.floats(0.1, 10))


@given(
    sequence=st.integers(1, 6),
    batch=st.integers(1, 3),
    vocabulary=st.integers(2, 20),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    chunks=st.builds(Chunks, st.integers(1, 19), st.integers(1, 19)),
    terms=st.lists(TERM, min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_however_the_tokens_are_cut(
    sequence: int,
    batch: int,
    vocabulary: int,
    widths: tuple[int, int],
    chunks: Chunks,
    terms: list[tuple[str, float]],
    seed: int,
) -> None:
    losses = losses_of(*({"name": name} for name, _ in terms))
    case = Case(sequence, batch, vocabulary, widths, seed=seed, dtype=torch.float64)
    expected = sum(weight * value.sum() for (_, weight), value in zip(terms, case.whole(losses), strict=True))
    assert isinstance(expected, Tensor)
    gradients = case.gradients(expected)
    total, _ = Heads(losses, case.student, case.teacher, case.labels, chunks).weighted([weight for _, weight in terms])
    near(total, expected, 1e-10)
    for found, wanted in zip(case.gradients(total), gradients, strict=True):
        near(found, wanted, 1e-8)


class Scaled(Loss):
    """A loss with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, student: Signals, teacher: Signals) -> Tensor:
        return (self.scale[0] * student.logits - self.scale[1] * teacher.logits).square().mean(dim=-1)


def test_the_parameters_of_a_loss_have_their_gradients() -> None:
    case, losses = Case(5, 2, 9), [*losses_of({"name": "LogitsKL"}), Scaled()]
    parameter = next(losses[1].parameters())
    expected = case.gradients(case.whole(losses).sum(), parameter)
    total, _ = Heads(losses, case.student, case.teacher, case.labels, Chunks(4, 3)).weighted([1, 1])
    for found, wanted in zip(case.gradients(total, parameter), expected, strict=True):
        near(found, wanted)


def test_the_backward_pass_runs_once() -> None:
    """Its gradients are scaled in place: who asked again would be told something else."""
    case = Case(3, 1, 9)
    heads = Heads(losses_of({"name": "LogitsKL"}), case.student, case.teacher, case.labels, Chunks(2, 2))
    total, _ = heads.weighted([0.5])
    total.backward(torch.tensor(3.0), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


class Products(TorchDispatchMode):
    """Rows of what each product of matrices gives."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.mm:
            self.rows.append(len(made))
        return made


def test_one_token_too_many_makes_no_small_products() -> None:
    """Chunks are of about a size, and the parts of a gradient in single precision are cut by what they hold."""
    case = Case(15, 1, 33, dtype=torch.bfloat16)
    with Products() as made:
        Heads(losses_of({"name": "LogitsKL"}), case.student, case.teacher, case.labels, Chunks(14, 14)).weighted([1])
    assert made.rows == [8, 8, 8, 33, 7, 7, 7, 33]


class Made(TorchDispatchMode):
    """Types of the tensors that operations make, of so many numbers or more."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self._numbers = numbers
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor) and each.numel() >= self._numbers and each.is_floating_point():
                self.types.append(each.dtype)
        return made


@pytest.mark.parametrize("name", PER_TOKEN)
def test_there_are_never_all_logits(name: str) -> None:
    case, losses = Case(30, 2, 50), losses_of({"name": name})
    with Made(60 * 50) as whole:
        case.whole(losses).sum().backward()
    assert whole.types
    with Made(60 * 50 // 4 + 1) as made:
        Heads(losses, case.student, case.teacher, case.labels, Chunks(15, 5)).weighted([1])[0].backward()
    assert not made.types


@pytest.mark.parametrize("given", [SUMS[0], SUMS[-2], SUMS[-1]], ids=["KL", "KL+CE", "all"])
def test_half_precision_is_summed_in_single(given: list[dict[str, Any]]) -> None:
    losses, case = losses_of(*given), Case(40, 2, 33, dtype=torch.bfloat16)
    total, values = Heads(losses, case.student, case.teacher, case.labels, Chunks(7, 3)).weighted([0.01] * len(losses))
    assert (total.dtype, values.dtype) == (torch.float32, torch.float32)
    expected = 0.01 * case.whole(losses).sum()
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-4)
    for found, wanted in zip(case.gradients(total), case.gradients(expected), strict=True):
        assert found.dtype == torch.bfloat16
        near(found.float(), wanted.float(), 2e-2)


def test_the_gradient_of_half_precision_makes_nothing_in_single() -> None:
    student = torch.randn(64, 40, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    loss = fused(student, student.detach().flip(0), forward_kl)
    weights = torch.rand(64, generator=torch.Generator().manual_seed(1))
    with Made(64 * 40) as made:
        (found,) = torch.autograd.grad(loss, student, weights, retain_graph=True)
    assert set(made.types) == {torch.bfloat16}
    (one,) = torch.autograd.grad(loss, student, torch.ones(64))
    assert torch.equal(found, (one.float() * weights.unsqueeze(1)).bfloat16()), "rounded once"


# A CPU scatters bfloat16 by way of float32, so a gradient of the likeliest tokens has a copy there that no GPU makes.
@pytest.mark.parametrize(
    ("given", "size"),
    [
        (given, size)
        for given in [*([{"name": name}] for name in PER_TOKEN), SUMS[-2]]
        for size in ([4] if given[0]["name"] == "LogitsTopKKL" else [4, 2])
    ],
    ids=str,
)
@pytest.mark.parametrize("chunks", [Chunks(2048, 2048), Chunks(512, 128), Chunks(1999, 99)], ids=str)
def test_the_memory_is_what_is_planned(given: list[dict[str, Any]], chunks: Chunks, size: int) -> None:
    settings = [config(**fields) for fields in given]
    case = Case(512, 4, 640, (16, 24), dtype=torch.float32 if size == 4 else torch.bfloat16)
    student = case.student
    heads = Heads(losses_of(*given), student, case.teacher, case.labels, chunks)
    measured = peak_of(lambda: heads.weighted([1] * len(given))[0].backward())
    planned = losses_memory(STUDENT, TEACHER, settings, 2048, size, chunks)
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("size", [4, 2])
def test_the_memory_is_what_is_planned_where_the_output_layer_is_large(size: int) -> None:
    """Larger than a chunk's logits: no second gradient stands beside it, in whichever type. (A CPU turns a part that it
    adds into float32 first.)
    """
    words, width = 6 * PART // 128, 128
    case = Case(4, 2, words, (width, width), dtype=torch.float32 if size == 4 else torch.bfloat16)
    of = architecture(hidden_size=width, vocabulary_size=words)
    heads = Heads(losses_of({"name": "LogitsKL"}), case.student, case.teacher, case.labels, Chunks(2, 1))
    measured = peak_of(lambda: heads.weighted([1])[0].backward())
    assert losses_memory(of, of, [config("LogitsKL")], 8, size, Chunks(2, 1)) == pytest.approx(measured, rel=0.15)


@given(vocabulary=st.integers(1, 2**40), on_gpu=st.booleans())
def test_chunks_have_few_logits_and_some_tokens(vocabulary: int, on_gpu: bool) -> None:
    chunks = Chunks.of(vocabulary, on_gpu=on_gpu)
    assert 1 <= chunks.block <= chunks.product <= ENOUGH[on_gpu]
    for tokens, most, enough in (
        (chunks.product, PRODUCT[on_gpu], ENOUGH[on_gpu]),
        (chunks.block, BLOCK[on_gpu], chunks.product),
    ):
        assert tokens == 1 or tokens * vocabulary <= most
        assert tokens == enough or (tokens + 1) * vocabulary > most
    assert tokens_per_chunk(128_256, PRODUCT[False]) == 130


@given(tokens=st.integers(1, 2**20), most=st.integers(1, 2**14))
def test_chunks_are_as_few_as_can_be_and_even(tokens: int, most: int) -> None:
    size, fewest = even(tokens, most), -(-tokens // most)
    assert 1 <= size <= most
    assert -(-tokens // size) == fewest, "no more than there must be"
    assert (size - 1) * fewest < tokens, "none longer than it must be"
