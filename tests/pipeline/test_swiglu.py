"""The SwiGLU that keeps its argument alone."""

import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compression_pipeline.megatron.swiglu import swiglu


def composed(inner: Tensor) -> Tensor:
    gate, linear = inner.chunk(2, dim=-1)
    return functional.silu(gate) * linear


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 5), max_size=3),
    st.integers(1, 40),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    st.floats(0.1, 30),
)
def test_values_and_gradients_are_torchs_to_the_bit(outer: list[int], half: int, dtype: torch.dtype, large: float):
    generator = torch.Generator().manual_seed(half)
    inner = (torch.randn(*outer, 2 * half, generator=generator) * large).to(dtype).requires_grad_()
    gradient = torch.randn(*outer, half, generator=generator).to(dtype)
    found = swiglu(inner)
    expected = composed(inner)
    assert torch.equal(found, expected)
    (of_ours,) = torch.autograd.grad(found, inner, gradient)
    (of_torchs,) = torch.autograd.grad(expected, inner, gradient)
    assert torch.equal(of_ours, of_torchs)


def test_the_gradient_is_that_of_its_values() -> None:
    inner = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, (inner,))
