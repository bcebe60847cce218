"""Norms for Megatron's local layer spec: torch's, and one that it does not have."""

from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn


class RMSNorm:
    """Makes torch's, as Megatron's WrappedTorchNorm does, which refuses sequence parallelism."""

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        return _marked(nn.RMSNorm(hidden_size, eps=eps), config)


def _marked(norm: nn.Module, config: Any) -> nn.Module:
    """The norm, told to Megatron: with sequence parallelism each rank has the gradients of its own tokens alone, and
    those of all ranks are to be summed.
    """
    for parameter in norm.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return norm


class LayerNorm1P(nn.LayerNorm):
    """LayerNorm whose weight is stored minus 1 (Megatron's `layernorm_zero_centered_gamma`, NeMo's `layernorm1p`).

    Megatron has it in Transformer Engine alone. The sum is made in the weight's type, as Hugging Face's Nemotron does.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        _marked(self, config)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize over the last dimension: [..., hidden] -> [..., hidden]."""
        return functional.layer_norm(input, self.normalized_shape, self.weight + 1, self.bias, self.eps)
