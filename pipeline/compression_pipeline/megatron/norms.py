"""Norms that torch does not have, for Megatron's local layer spec."""

from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn


class LayerNorm1P(nn.LayerNorm):
    """LayerNorm whose weight is stored minus 1 (Megatron's `layernorm_zero_centered_gamma`, NeMo's `layernorm1p`).

    Megatron has it in Transformer Engine alone. The sum is made in the weight's type, as Hugging Face's Nemotron does.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize over the last dimension: [..., hidden] -> [..., hidden]."""
        return functional.layer_norm(input, self.normalized_shape, self.weight + 1, self.bias, self.eps)
