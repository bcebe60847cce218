"""Feed-forward neurons: how strongly each one speaks to the down projection."""

from typing import Any

from torch import Tensor

from .base import Estimator


class FeedForwardNeurons(Estimator):
    """Magnitude of the down projection's input, aggregated over each sequence and over samples, per layer."""

    def attach(self, model: Any) -> None:
        self._channels = self.channels(self.architecture.layers, self.architecture.ffn_hidden_size)
        for index, layer in enumerate(model.decoder.layers):
            self.hook(layer.mlp.linear_fc2, lambda _, inputs, __, index=index: self._channels.add(index, inputs[0]))

    def scores(self) -> Tensor:
        return self._channels.total(self.over_ranks).float()
