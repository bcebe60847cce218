"""Scores a Hugging Face model without some of its layers, which are taken out in place: it is never loaded again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from compression_pipeline.config import EvaluateConfig

from .live import repeatable


class ShallowScores:
    """One rank's scores of a model by the one task of `settings`, without a block of its layers."""

    def __init__(
        self,
        load: Callable[[], tuple[Any, Any]],
        folder: Path,
        settings: EvaluateConfig,
        *,
        rank: int,
        ranks: int,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """`load`: gives model and tokenizer, once they are needed. `folder`: of an artifact of the phase tasks."""
        self.rank, self.ranks = rank, ranks
        self._load = load
        self._loaded: tuple[Any, Any] | None = None
        self._folder = folder
        self._settings = settings
        self._tick = tick

    def score(self, first: int, length: int) -> tuple[float, bool]:
        """The score without these layers, and whether a higher one is better. What `tick` raises ends it."""
        from .scoring import score  # which imports lm-eval

        with repeatable():
            model, tokenizer = self._loaded = self._loaded or self._load()
            with without_layers(model, first, length):
                [found], _ = score(model, tokenizer, self._folder, self._settings, tick=self._tick)
        return found.score, found.higher_is_better


@contextmanager
def without_layers(model: Any, first: int, length: int) -> Iterator[None]:
    """A model of transformers without layers `first` (from 0) to `first` + `length` - 1."""
    decoder, config = model.model, model.config
    layers, kinds = decoder.layers, getattr(config, "layer_types", None)

    def keep(kept: list[Any], kept_kinds: Any) -> None:
        for index, layer in enumerate(kept):
            layer.self_attn.layer_idx = index  # its place in the cache of keys and values
        decoder.layers = kept if isinstance(kept, nn.ModuleList) else nn.ModuleList(kept)
        config.num_hidden_layers = len(kept)
        if kinds is not None:
            config.layer_types = kept_kinds

    def rest(of: Any) -> list[Any]:
        return [*of[:first], *of[first + length :]]

    try:
        keep(rest(list(layers)), kinds and rest(kinds))
        yield
    finally:
        keep(layers, kinds)
