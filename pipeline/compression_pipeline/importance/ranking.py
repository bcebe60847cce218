"""From scores to what a student keeps: pure, on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.config import Architecture, PruneConfig, PrunedHeads

from .base import Scores

BLOCKS, HIGHER = "layers.blocks", "layers.higherIsBetter"
"""See `Scores`."""


@dataclass(frozen=True)
class Choice:
    """What the student keeps, in the order in which it will have it. None: the axis stays as it is.

    `hidden`: channels [kept]; `ffn`: neurons of each layer [layers, kept]; `heads`: heads of each layer [layers, kept],
    counted over the layer, group after group; `layers`: layers counted from 0, ascending.
    """

    hidden: Tensor | None
    ffn: Tensor | None
    heads: Tensor | None
    layers: list[int]
    merged: Tensor | None = None
    """Pairs of a kept head and the pruned one that is merged into it, [layers, pairs, 2], counted over the layer."""

    def then(self, later: "Choice") -> "Choice":
        """What is kept of the first model after `later` was chosen of what this one had kept; nothing is merged."""
        hidden = later.hidden if self.hidden is None or later.hidden is None else self.hidden[later.hidden]
        return Choice(
            hidden=self.hidden if hidden is None else hidden,
            ffn=self._then(self.ffn, later.ffn),
            heads=self._then(self.heads, later.heads),
            layers=[self.layers[layer] for layer in later.layers],
        )

    def _then(self, kept: Tensor | None, later: Tensor | None) -> Tensor | None:
        """`later` has rows for the layers that were left; here they are for all. Those of dropped ones mean nothing."""
        if later is None:
            return kept
        rows = later if kept is None else kept[self.layers].gather(1, later)
        found = torch.zeros(max(self.layers) + 1, rows.shape[1], dtype=rows.dtype)
        found[self.layers] = rows
        return found

    def to_json(self) -> dict[str, Any]:
        """For people and tools: `layers` counted from 1, everything else from 0; width as kept in the kept layers."""
        kept = self.layers
        return {
            "layers": [layer + 1 for layer in kept],
            "hidden": None if self.hidden is None else self.hidden.tolist(),
            "ffn": None if self.ffn is None else self.ffn[kept].tolist(),
            "heads": None if self.heads is None else self.heads[kept].tolist(),
        }


def choose(scores: Scores, teacher: Architecture, prune: PruneConfig) -> Choice:
    """Pick the highest scores on every axis that `prune` makes smaller.

    Ties go to the lower index, and between blocks of layers the later is dropped, so the choice is a function of the
    scores alone.
    """
    return Choice(
        hidden=_top(scores["hidden"], prune.hidden_size, teacher.hidden_size),
        ffn=_top(scores["ffn"], prune.ffn_hidden_size, teacher.ffn_hidden_size),
        heads=_heads(scores["heads"], prune.attention_heads, teacher),
        layers=_layers(scores, teacher, prune),
        merged=_merged(scores["heads"], prune, teacher),
    )


def descending(scores: Tensor) -> Tensor:
    """Indices along the last dimension, best first, ties in their order."""
    return scores.argsort(dim=-1, descending=True, stable=True)


def _top(scores: Tensor, wanted: int | None, has: int) -> Tensor | None:
    if wanted is None or wanted == has:
        return None
    return descending(scores)[..., :wanted]


def _heads(scores: Tensor, wanted: int | None, teacher: Architecture) -> Tensor | None:
    """Each KV group keeps equally many of its query heads: those with the highest scores in it."""
    if wanted is None or wanted == teacher.attention_heads:
        return None
    return _ranked(scores, teacher)[..., : wanted // teacher.query_groups].flatten(start_dim=1)


def _ranked(scores: Tensor, teacher: Architecture) -> Tensor:
    """[layers, KV groups, heads of a group]: each group's heads, best first, counted over the layer."""
    groups = teacher.query_groups
    width = teacher.attention_heads // groups
    return descending(scores.view(-1, groups, width)) + torch.arange(groups)[:, None] * width


def _merged(scores: Tensor, prune: PruneConfig, teacher: Architecture) -> Tensor | None:
    """Which pruned head goes into which kept one, where they are merged.

    Of L heads by rank, K of them kept, the K-th takes the first that is pruned, the one before it the next, and so on:
    head i takes head 2K - i + 1 (arXiv 2407.14679, section 2.3), as long as there are heads on both sides.
    """
    wanted = prune.attention_heads
    if prune.pruned_heads is not PrunedHeads.MERGE or wanted is None or wanted == teacher.attention_heads:
        return None
    ranked, kept = _ranked(scores, teacher), wanted // teacher.query_groups
    pairs = min(kept, ranked.shape[-1] - kept)
    takers, given = ranked[..., kept - pairs : kept].flip(-1), ranked[..., kept : kept + pairs]
    return torch.stack((takers, given), dim=-1).flatten(1, 2)


def _layers(scores: Scores, teacher: Architecture, prune: PruneConfig) -> list[int]:
    if prune.drop_layers:
        return [layer for layer in range(teacher.layers) if layer + 1 not in prune.drop_layers]
    if prune.layers is None:
        return list(range(teacher.layers))
    dropped = teacher.layers - prune.layers
    if dropped and BLOCKS in scores:
        block = best_block(scores[BLOCKS], dropped, higher_is_better=higher_is_better(scores))
        return [layer for layer in range(teacher.layers) if layer not in block]
    return sorted(descending(scores["layers"])[: prune.layers].tolist())


def block_score(scores: Scores, kept: Sequence[int]) -> float | None:
    """What was measured of the model without the layers that are not kept; None where these were no such block."""
    _, *rows = scores[BLOCKS].tolist() if BLOCKS in scores else [[]]
    dropped = sorted(set(range(len(scores["layers"]))) - set(kept))
    return next(
        (value for first, length, value in rows if [*range(int(first) - 1, int(first + length) - 1)] == dropped), None
    )


def higher_is_better(scores: Scores) -> bool:
    """Of what was measured without blocks of layers."""
    return HIGHER in scores and bool(scores[HIGHER].item())


def best_block(blocks: Tensor, length: int, *, higher_is_better: bool = False) -> range:
    """The block of this length without which the model is best, counted from 0.

    Of equals the later, as both papers drop later layers: a score over few questions knows many equals.
    """
    sign = -1 if higher_is_better else 1
    first, _, _ = min(blocks[blocks[:, 1] == length].tolist(), key=lambda row: (sign * row[2], -row[0]))
    return range(int(first) - 1, int(first) - 1 + length)
