"""SwiGLU that keeps less for the backward pass (arXiv 2002.05202, equation 6, without biases)."""

from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor


class SwiGLU(torch.autograd.Function):
    """SiLU of the first half of the last axis, times the second.

    Composed of torch's operations it would keep its argument, the SiLU and a copy of the second half. This one keeps
    the argument alone, and computes the SiLU again. Megatron's fused one does so, too, but needs a compiler on the
    machine. Values and gradients are those of torch's operations to the bit.
    """

    @staticmethod
    def forward(ctx: Any, inner: Tensor) -> Tensor:
        """[..., 2 n] -> [..., n]."""
        ctx.save_for_backward(inner)
        gate, linear = inner.chunk(2, dim=-1)
        return functional.silu(gate).mul_(linear)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]  # torch takes any number
        """Of the product, [..., n] -> of its argument, [..., 2 n]."""
        (inner,) = cast("tuple[Tensor]", ctx.saved_tensors)
        gate, linear = inner.chunk(2, dim=-1)
        found = torch.empty_like(inner)
        of_gate, of_linear = found.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(gradient * linear, gate, grad_input=of_gate)
        torch.mul(gradient, functional.silu(gate), out=of_linear)
        return found


def swiglu(inner: Tensor) -> Tensor:
    """[..., 2 n] -> [..., n]."""
    return cast("Tensor", SwiGLU.apply(inner))
