"""The loss curves as a picture, for places that show no HTML (a README, a chat)."""

from collections.abc import Sequence
from pathlib import Path

from .charts import Label, Level, Series, spread

PALETTE = ("#1565c0", "#c2470a", "#0b7a6b", "#7b3fb5", "#b4236c", "#6b6f10")
INK, MUTED, GRID = "#1d1d1f", "#5f6369", "#ecebe7"


def draw(file: Path, series: Sequence[Series], levels: Sequence[Level]) -> None:
    """Draw validation losses over distillation steps, with the teacher's as lines to compare with, into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=160, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    drawn = [line for line in series if line.points]
    for line in drawn:
        steps, losses = zip(*line.points, strict=True)
        marker = "o" if line.dots else None
        axes.plot(steps, losses, color=PALETTE[line.colour], linewidth=2.2, marker=marker, markersize=5, clip_on=False)
    for level in levels:
        axes.axhline(level.value, color=MUTED, linewidth=1.4, linestyle=(0, (6, 3)) if level.strong else (0, (1, 3)))
    last = max(line.points[-1][0] for line in drawn)
    axes.set_xlim(0, last)
    low, high = axes.get_ylim()
    ends = [Label((line.points[-1][1] - low) / (high - low) * 100, line.label, line.colour) for line in drawn]
    ends += [Label((level.value - low) / (high - low) * 100, level.label, None) for level in levels]
    for label in spread(ends, height=6.0):
        colour = MUTED if label.colour is None else PALETTE[label.colour]
        weight = "normal" if label.colour is None else "bold"
        axes.annotate(
            label.text,
            (1, label.at / 100),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight=weight,
            parse_math=False,  # a name may hold a dollar sign
        )
    axes.set_title("Validation loss while distilling (nats per token)", loc="left", color=INK, fontsize=12)
    axes.set_xlabel("step", color=MUTED)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    figure.savefig(file)
