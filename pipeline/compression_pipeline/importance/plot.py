"""The picture of what mattered and what was cut."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.config import Architecture

from .base import Scores
from .ranking import Choice

KEPT, CUT = "#2563eb", "#cbd5e1"


def plot(scores: Scores, choice: Choice, teacher: Architecture, folder: Path, *, depth: str) -> None:
    """Write importance.png and importance.svg into `folder`: one panel an axis, what the student keeps in blue.

    Channels and neurons are drawn from the most important to the least, relative to the largest score of their layer;
    heads and layers in their place. `depth`: what the layers' scores are.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # The same scores make the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "importance", "font.size": 9, "axes.spines.top": False}):
        figure, panels = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
        _curves(panels[0, 0], scores["hidden"][None], choice.hidden, "Hidden channels")
        _curves(panels[0, 1], scores["ffn"], choice.ffn, f"Feed-forward neurons, {teacher.layers} layers")
        _heads(figure, panels[1, 0], scores["heads"], choice.heads, teacher)
        _layers(panels[1, 1], scores["layers"], choice.layers, depth)
        figure.savefig(folder / "importance.png", dpi=120)
        figure.savefig(folder / "importance.svg", metadata={"Date": None})
        plt.close(figure)


def _curves(axes: Any, scores: Tensor, kept: Tensor | None, title: str) -> None:
    size = scores.shape[-1]
    count = size if kept is None else kept.shape[-1]
    relative = scores.sort(dim=-1, descending=True).values / scores.amax(dim=-1, keepdim=True).clamp(min=1e-12)
    # At most a thousand points a line: the eye sees no more, and the SVG stays small.
    places = torch.linspace(0, size - 1, min(size, 1000)).round().long()
    for row in relative:
        axes.plot(places[places < count], row[places[places < count]], color=KEPT, linewidth=0.8, alpha=0.7)
        axes.plot(places[places >= count], row[places[places >= count]], color=CUT, linewidth=0.8)
    if count < size:
        axes.axvline(count - 0.5, color="black", linewidth=0.8, linestyle=":")
    axes.set_title(f"{title}: {count:,} of {size:,} kept")
    axes.set_xlabel("rank")
    axes.set_ylabel("score / largest")
    axes.set_ylim(0, 1.02)


def _heads(figure: Any, axes: Any, scores: Tensor, kept: Tensor | None, teacher: Architecture) -> None:
    image = axes.imshow(
        scores / scores.amax(dim=-1, keepdim=True).clamp(min=1e-12), aspect="auto", cmap="Blues", vmin=0
    )
    figure.colorbar(image, ax=axes, label="score / largest of the layer")
    count = teacher.attention_heads if kept is None else kept.shape[-1]
    if kept is not None:
        cut = torch.ones_like(scores, dtype=torch.bool).scatter(1, kept, False).nonzero()
        axes.scatter(cut[:, 1], cut[:, 0], marker="x", color="#dc2626", s=18, label="cut")
        axes.legend(loc="upper right", fontsize=8)
    width = teacher.attention_heads // teacher.query_groups
    for group in range(1, teacher.query_groups):
        axes.axvline(group * width - 0.5, color="white", linewidth=1)
    axes.set_title(f"Attention heads by KV group: {count} of {teacher.attention_heads} kept")
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    _layer_ticks(axes.set_yticks, teacher.layers, offset=0)


def _layers(axes: Any, scores: Tensor, kept: list[int], measure: str) -> None:
    count = len(scores)
    axes.bar(range(1, count + 1), scores, color=[KEPT if index in kept else CUT for index in range(count)])
    axes.set_title(f"Layers: {len(kept)} of {count} kept")
    axes.set_xlabel("layer")
    axes.set_ylabel(measure)
    _layer_ticks(axes.set_xticks, count, offset=1)


def _layer_ticks(set_ticks: Any, count: int, offset: int) -> None:
    """Label layers from 1, at most sixteen of them; `offset`: where the first one is drawn."""
    step = -(-count // 16)
    shown = range(0, count, step)
    set_ticks([index + offset for index in shown], labels=[str(index + 1) for index in shown])
