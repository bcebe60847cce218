"""Feed-forward neurons: how strongly each one speaks to the down projection."""

from typing import Any

from torch import Tensor

from .base import Estimator, squared_means


class FeedForwardNeurons(Estimator):
    """Magnitude of the down projection's input: mean over each sequence, L2 over samples, per layer."""

    def attach(self, model: Any) -> None:
        self._sums = self.zeros(self.architecture.layers, self.architecture.ffn_hidden_size)
        for index, layer in enumerate(model.decoder.layers):
            self.hook(layer.mlp.linear_fc2, lambda _, inputs, __, index=index: self._add(index, inputs[0]))

    def _add(self, index: int, activations: Tensor) -> None:
        self._sums[index] += squared_means(activations)

    def scores(self) -> Tensor:
        return self.over_ranks(self._sums).sqrt().float()
