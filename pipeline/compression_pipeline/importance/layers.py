"""Layers: how much each one turns the residual stream."""

from typing import Any

from torch import Tensor
from torch.nn.functional import cosine_similarity

from .base import Estimator


class BlockInfluence(Estimator):
    """Block influence: 1 - E[cos(input, output)] over all tokens (ShortGPT, arXiv 2403.03853)."""

    def attach(self, model: Any) -> None:
        # One row a layer, and one that counts tokens, so that ranks add up in one go.
        self._sums = self.zeros(self.architecture.layers + 1)
        for index, layer in enumerate(model.decoder.layers):
            self.hook(
                layer,
                lambda _, inputs, named, output, index=index: self._add(
                    index, named["hidden_states"] if "hidden_states" in named else inputs[0], output
                ),
                with_kwargs=True,
            )

    def _add(self, index: int, entered: Tensor, output: tuple[Tensor, Any]) -> None:
        similarity = cosine_similarity(entered.detach().float(), output[0].detach().float(), dim=-1)
        self._sums[index] += similarity.double().sum()
        if index == 0:
            self._sums[-1] += similarity.numel()

    def scores(self) -> Tensor:
        sums = self.over_ranks(self._sums)
        return (1 - sums[:-1] / sums[-1]).float()
