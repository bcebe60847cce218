"""Attention heads: how strongly each one speaks to the output projection."""

from typing import Any

from torch import Tensor

from .base import Estimator, squared_means


class AttentionHeads(Estimator):
    """Magnitude of the output projection's input: mean over each sequence, L2 over samples and a head's channels."""

    def attach(self, model: Any) -> None:
        self._sums = self.zeros(self.architecture.layers, self.architecture.attention_heads)
        for index, layer in enumerate(model.decoder.layers):
            linear = layer.self_attention.linear_proj
            self.hook(linear, lambda _, inputs, __, index=index: self._add(index, inputs[0]))

    def _add(self, index: int, activations: Tensor) -> None:
        channels = squared_means(activations)
        self._sums[index] += channels.view(self.architecture.attention_heads, -1).sum(dim=1)

    def scores(self) -> Tensor:
        return self.over_ranks(self._sums).sqrt().float()
