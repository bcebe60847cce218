"""The sum that every engine lowers: what is Dynamic has the size of what compares logits, in each sequence."""

from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compression_pipeline.config.losses import LOSSES
from compression_pipeline.losses import weighted_sum


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def summed(terms: Sequence[tuple[str, dict[str, Any]]], values: Sequence[Tensor]) -> Tensor:
    return weighted_sum([LOSSES[kind].model_validate(fields) for kind, fields in terms], values)


DYNAMIC = {"balance": "Dynamic"}


def test_a_dynamic_loss_has_the_size_of_those_on_logits() -> None:
    """arXiv 2407.14679, section 2.4: alpha is the ratio of the two, and no gradient goes through it."""
    on_logits, other = numbers(5, 3, seed=0), numbers(5, 3, seed=1)
    terms = [("LogitsKL", {}), ("LogitsMSE", {"weight": 3, **DYNAMIC})]
    total = summed(terms, [on_logits, other])
    torch.testing.assert_close(total, on_logits.mean() * 4)
    ratio = (on_logits.mean(dim=0) / other.mean(dim=0)).detach()
    expected = torch.autograd.grad((on_logits + 3 * ratio * other).mean(), [on_logits, other])
    for found, wanted in zip(torch.autograd.grad(total, [on_logits, other]), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert summed(terms, [torch.zeros(5, 3)] * 2) == 0, "nothing is divided by nothing"


def test_dynamic_losses_have_one_factor_together() -> None:
    """As alpha scales the sum of all states in the paper, and all other losses in ModelOpt's balancer: what hardly
    differs between the two models stays small.
    """
    values = on_logits, one, other = [numbers(4, 2, seed=seed) for seed in range(3)]
    total = summed([("LogitsKL", {}), ("HiddenStates", DYNAMIC), ("Embeddings", DYNAMIC)], values)
    torch.testing.assert_close(total, on_logits.mean() * 2)
    factor = on_logits.mean(dim=0) / (one + other).mean(dim=0)
    for found, wanted in zip(torch.autograd.grad(total, values), (torch.ones(2), factor, factor), strict=True):
        torch.testing.assert_close(found, (wanted / 8).expand(4, 2))


TERM = st.tuples(st.floats(0.1, 10), st.booleans(), st.sampled_from([0.0, 1e-3, 1.0, 1e3]))


@given(
    tokens=st.integers(1, 3),
    batch=st.sampled_from([2, 4]),
    others=st.lists(TERM, min_size=1, max_size=3),
    seed=st.integers(0),
)
def test_the_sum_is_the_same_however_a_batch_is_split(
    tokens: int, batch: int, others: list[tuple[float, bool, float]], seed: int
) -> None:
    """An artifact's key does not know micro-batches and ranks, so value and gradient must not know them either."""
    terms: list[tuple[str, dict[str, Any]]] = [("LogitsKL", {})]
    terms += [("Embeddings", {"weight": weight, **(DYNAMIC if dynamic else {})}) for weight, dynamic, _ in others]
    sizes = [1.0, *(size for *_, size in others)]
    values = [numbers(tokens, batch, seed=(seed + n) % 2**31) for n in range(len(terms))]
    scaled = [value * size for value, size in zip(values, sizes, strict=True)]
    whole = summed(terms, scaled)
    expected = torch.autograd.grad(whole, values, retain_graph=True)
    for parts in (2, batch):
        each = zip(*(value.chunk(parts, dim=1) for value in scaled), strict=True)
        split = torch.stack([summed(terms, part) for part in each]).mean()
        torch.testing.assert_close(split, whole)
        for found, wanted in zip(torch.autograd.grad(split, values, retain_graph=True), expected, strict=True):
            torch.testing.assert_close(found, wanted)
