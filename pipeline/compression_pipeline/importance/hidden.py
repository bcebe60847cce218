"""Hidden channels: the residual stream has one order for the whole model."""

from typing import Any

from torch import Tensor

from .base import Estimator, squared_means


class HiddenChannels(Estimator):
    """Magnitude of the output of both norms of every layer: L2 over samples each, summed over all norms.

    The final norm is left out, as in ModelOpt.
    """

    def attach(self, model: Any) -> None:
        norms = [norm for layer in model.decoder.layers for norm in (layer.input_layernorm, layer.pre_mlp_layernorm)]
        self._sums = self.zeros(len(norms), self.architecture.hidden_size)
        for index, norm in enumerate(norms):
            self.hook(norm, lambda _, __, output, index=index: self._add(index, output))

    def _add(self, index: int, activations: Tensor) -> None:
        self._sums[index] += squared_means(activations)

    def scores(self) -> Tensor:
        return self.over_ranks(self._sums).sqrt().sum(dim=0).float()
