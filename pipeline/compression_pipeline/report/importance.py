"""What prune measured and what it kept, as far as the report shows it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compression_pipeline.config import ImportanceConfig

SCORES = "importance.safetensors"
CHOSEN = "chosen.json"


DEPTH = ImportanceConfig().depth
"""The method for layers of artifacts that name none."""


@dataclass(frozen=True)
class Axis:
    """Scores of one axis of one layer (or of the whole model), and the indices that were kept, counted from 0."""

    scores: Sequence[float]
    kept: Sequence[int]

    @property
    def kept_share(self) -> float | None:
        """Share of all importance that the kept ones hold."""
        total = sum(self.scores)
        return sum(self.scores[i] for i in self.kept) / total if total > 0 else None


@dataclass(frozen=True)
class Importance:
    """Scores and choices. Layers are counted from 1, everything else from 0; ffn and heads are of the kept layers."""

    layers: Mapping[int, float] = field(default_factory=dict)
    depth: str = DEPTH
    """The method that scored the layers."""
    whole: float | None = None
    """Loss, or score, of the whole teacher, where blocks were left out."""
    blocks: Mapping[int, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """By length of a block of layers: its first layer and the loss, or the score, without it."""
    higher_is_better: bool = False
    """Of what was measured without blocks: a score, not a loss."""
    task: str | None = None
    """The task that blocks were scored by."""
    steps: Sequence[Mapping[str, Any]] = ()
    """The cuts that led to the student, where there were several: the shape after each."""
    hidden: Axis | None = None
    ffn: Mapping[int, Axis] = field(default_factory=dict)
    heads: Mapping[int, Axis] = field(default_factory=dict)


def read_importance(folder: Path) -> Importance:
    """What the prune artifact in `folder` measured and chose.

    Raises OSError, ValueError, KeyError, IndexError or TypeError where that can't be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        scores: dict[str, Any] = {name: array.tolist() for name, array in load_file(folder / SCORES).items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    chosen = json.loads((folder / CHOSEN).read_text(encoding="utf-8"))
    kept: list[int] = chosen["layers"]
    hidden, blocks = scores.get("hidden"), scores.get("layers.blocks", [])
    return Importance(
        layers=dict(enumerate(scores.get("layers", []), start=1)),
        depth=str(chosen.get("methods", {}).get("layers", DEPTH)),
        whole=next((loss for _, length, loss in blocks if not length), None),
        blocks={
            int(length): [(int(first), loss) for first, n, loss in blocks if n == length]
            for length in sorted({length for _, length, _ in blocks if length})
        },
        higher_is_better=bool(chosen.get("higherIsBetter")),
        task=chosen.get("task"),
        steps=chosen.get("steps", ()),
        hidden=Axis(hidden, chosen["hidden"]) if hidden and chosen.get("hidden") else None,
        ffn=_by_layer(scores.get("ffn"), chosen.get("ffn"), kept),
        heads=_by_layer(scores.get("heads"), chosen.get("heads"), kept),
    )


def _by_layer(scores: list[list[float]] | None, chosen: list[list[int]] | None, kept: list[int]) -> dict[int, Axis]:
    """`scores` has a row for every layer of the teacher, `chosen` one for every layer that was kept."""
    if not scores or not chosen:
        return {}
    return {layer: Axis(scores[layer - 1], row) for layer, row in zip(kept, chosen, strict=True)}
