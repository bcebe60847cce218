"""Attention heads: how strongly each one speaks to the output projection."""

from typing import Any

from torch import Tensor

from .base import Estimator


class AttentionHeads(Estimator):
    """Magnitude of the output projection's input, aggregated over each sequence and over samples; L2 over a head's
    channels.
    """

    def attach(self, model: Any) -> None:
        heads = self.architecture.attention_heads
        self._channels = self.channels(self.architecture.layers, heads * self.architecture.head_dim)
        for index, layer in enumerate(model.decoder.layers):
            linear = layer.self_attention.linear_proj
            self.hook(linear, lambda _, inputs, __, index=index: self._channels.add(index, inputs[0]))

    def scores(self) -> Tensor:
        found = self._channels.total(self.over_ranks)
        return found.view(len(found), self.architecture.attention_heads, -1).norm(dim=-1).float()
