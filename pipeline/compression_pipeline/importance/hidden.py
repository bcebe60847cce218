"""Hidden channels: the residual stream has one order for the whole model."""

from typing import Any

from torch import Tensor

from .base import Estimator


class HiddenChannels(Estimator):
    """Magnitude of the output of both norms of every layer, aggregated over each sequence and over samples; summed over
    all norms.

    The final norm is left out, as in ModelOpt.
    """

    def attach(self, model: Any) -> None:
        norms = [norm for layer in model.decoder.layers for norm in (layer.input_layernorm, layer.pre_mlp_layernorm)]
        self._channels = self.channels(len(norms), self.architecture.hidden_size)
        for index, norm in enumerate(norms):
            self.hook(norm, lambda _, __, output, index=index: self._channels.add(index, output))

    def scores(self) -> Tensor:
        return self._channels.total(self.over_ranks).sum(dim=0).float()
