"""Geometry of all charts: numbers in, SVG path data and label positions out. No drawing library, no I/O.

A chart's plot area is an SVG of `SPAN` x `SPAN` units that is stretched to whatever space there is (lines keep their
width, see report.css), and every label is HTML that is placed in per cent of that area. So text has the same size on a
phone and on a desk, in the light and in the dark.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

SPAN = 1000
COLOURS = 6
"""Entries of palette.css; more students begin anew."""

MOST_POINTS = 400
LABEL_HEIGHTS = {"tall": 5.5, "plain": 7.8, "panel": 10.5}
"""Per cent of a plot's height that a line of text needs, by the plot's size in report.css: 22.5 rem on a desk and 14.5
on a phone, where text is smaller; 12 rem; 9 rem."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line. `colour` is the number of a palette entry in report.css; `dots` marks each measured point."""

    label: str
    points: Sequence[Point]
    colour: int
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    label: str
    value: float
    strong: bool = True


@dataclass(frozen=True)
class Tick:
    """A grid line: where (per cent from the left or from the bottom) and what stands beside it."""

    at: float
    label: str


@dataclass(frozen=True)
class Label:
    """A name at a line's end, per cent from the bottom."""

    at: float
    text: str
    colour: int | None


@dataclass(frozen=True)
class Mark:
    """A name above a point, per cent from the left and from the bottom."""

    x: float
    y: float
    text: str
    colour: int


@dataclass(frozen=True)
class Line:
    """A drawn series: SVG path data of the line and of its dots, and what a reader without eyes is told."""

    path: str
    dots: Sequence[tuple[str, str]]
    colour: int
    faint: bool


@dataclass(frozen=True)
class LineChart:
    """Everything that the template needs to draw a line chart."""

    kind: ClassVar = "line"
    title: str
    note: str
    x_label: str
    lines: Sequence[Line]
    levels: Sequence[tuple[str, bool]]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    labels: Sequence[Label]
    description: str
    marks: Sequence[Mark] = ()

    def names(self, size: str) -> list[Label]:
        """The labels, moved apart for a plot of this size."""
        return spread(self.labels, LABEL_HEIGHTS[size])


@dataclass(frozen=True)
class Figures:
    """Figures in a table: name, value, meaning."""

    kind: ClassVar = "figures"
    title: str
    note: str
    rows: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of several figures each; the first one is marked as the chosen one."""

    kind: ClassVar = "table"
    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Whisker:
    """One model's figure with its interval: SVG path data, a name, and the figure in words."""

    name: str
    colour: int | None
    line: str
    dot: str
    text: str


@dataclass(frozen=True)
class Intervals:
    """Figures with their intervals, the models below each other on one scale for each figure."""

    kind: ClassVar = "intervals"
    title: str
    note: str
    rows: Sequence[tuple[str, Sequence[Whisker]]]


@dataclass(frozen=True)
class Area:
    """A ranked distribution, drawn as two areas: what was kept and what was cut."""

    kind: ClassVar = "area"
    title: str
    note: str
    kept: str
    cut: str
    cut_at: float
    kept_label: str
    cut_label: str
    description: str


@dataclass(frozen=True)
class Cell:
    """One part of the teacher (a layer, a head): its score relative to the highest (0 to 1), and its fate."""

    label: str
    score: float | None
    kept: bool
    hint: str


@dataclass(frozen=True)
class Grid:
    """Rows of cells, e.g. heads by layer; or one row of bars, e.g. layers."""

    kind: ClassVar = "grid"
    title: str
    note: str
    rows: Sequence[tuple[str, Sequence[Cell]]] = field(default=())


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, at most `most` + 1 of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * m for m in (1, 2, 2.5, 5, 10) if magnitude * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def texts(values: Sequence[float]) -> list[str]:
    """The ticks of one axis in one unit (thousands and millions shortened), with the decimals that tell them apart."""
    largest = max((abs(value) for value in values), default=0.0)
    size, unit = next(((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e4, "k")) if largest >= s), (1.0, ""))
    scaled = [value / (1e3 if unit == "k" else size) for value in values]
    plain = [f"{value:g}" for value in scaled]
    if any("e" in text for text in plain):
        return [text + unit for text in plain]
    decimals = max((len(text.partition(".")[2]) for text in plain), default=0)
    return [f"{value:.{decimals}f}{unit}" if value else "0" for value in scaled]


def _told(values: Sequence[float]) -> Iterator[tuple[float, str]]:
    return zip(values, texts(values), strict=True)


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: means over equal runs, which also keeps a noisy loss readable."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def spread(labels: Sequence[Label], height: float) -> list[Label]:
    """Move labels apart, as little as needed, so that none covers another; where there is room, within 0 to 100."""
    order = sorted(labels, key=lambda label: label.at)
    # Shifted down by its rank, a label may be no lower than the one before: the least squares fit pools neighbours that
    # break this into their mean (isotonic regression).
    pools: list[list[float]] = []
    for rank, label in enumerate(order):
        pools.append([label.at - rank * height])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    shifted = [_mean(pool) for pool in pools for _ in pool]
    highest = 100 - (len(order) - 1) * height
    places = [max(min(place, highest), 0.0) + rank * height for rank, place in enumerate(shifted)]
    return [Label(place, label.text, label.colour) for place, label in zip(places, order, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    x_label: str = "step",
    levels: Sequence[Level] = (),
    name_lines: bool = True,
    highest: float | None = None,
    scattered: bool = False,
) -> LineChart | None:
    """A line chart of `series` and horizontal `levels`; None where no series has a finite point. `scattered`: each
    series is one point, which has its name above it.

    Values above `highest` are drawn at the upper edge; hints and description tell them as they are.
    """
    kept = [
        Series(s.label, points, s.colour, s.dots, s.faint)
        for s in series
        if (points := thin([(x, y) for x, y in s.points if math.isfinite(x) and math.isfinite(y)]))
    ]
    if not kept:
        return None
    xs = [x for s in kept for x, _ in s.points]
    ys = [y for s in kept for _, y in s.points] + [level.value for level in levels]
    if highest is not None:
        ys = [min(y, highest) for y in ys]
    left, right = min(xs), max(max(xs), min(xs) + 1)
    margin = (max(ys) - min(ys)) * 0.06 or abs(ys[0]) * 0.05 or 1.0
    bottom, top = min(ys) - margin, max(ys) + margin
    if scattered:  # names need room
        aside = (right - left) * 0.1
        left, right, top = left - aside, right + aside, top + 2 * margin
    ceiling = math.inf if highest is None else highest

    def along(x: float) -> float:
        return (x - left) / (right - left)

    def up(y: float) -> float:
        return (min(y, ceiling) - bottom) / (top - bottom)

    def place(point: Point) -> str:
        return f"{along(point[0]) * SPAN:.1f} {(1 - up(point[1])) * SPAN:.1f}"

    lines = [
        Line(
            path="M" + "L".join(place(p) for p in s.points),
            dots=[(f"M{place(p)}h0", f"{s.label}, {x_label} {p[0]:g}: {p[1]:.3f}") for p in s.points] if s.dots else [],
            colour=s.colour,
            faint=s.faint,
        )
        for s in kept
    ]
    named = [Label(up(s.points[-1][1]) * 100, s.label, s.colour) for s in kept] if name_lines and not scattered else []
    named += [Label(up(level.value) * 100, level.label, None) for level in levels]
    return LineChart(
        title=title,
        note=note,
        x_label=x_label,
        lines=lines,
        levels=[(f"M0 {(1 - up(level.value)) * SPAN:.1f}H{SPAN}", level.strong) for level in levels],
        x_ticks=[Tick(along(x) * 100, text) for x, text in _told(ticks(left, right))],
        y_ticks=[Tick(up(y) * 100, text) for y, text in _told(ticks(bottom, top))],
        labels=named,
        description="; ".join(
            [f"{s.label}: {'' if scattered else f'from {s.points[0][1]:.3f} to '}{s.points[-1][1]:.3f}" for s in kept]
            + [f"{level.label}: {level.value:.3f}" for level in levels]
        ),
        marks=[Mark(along(x) * 100, up(y) * 100, s.label, s.colour) for s in kept for x, y in s.points[-1:]]
        if scattered
        else [],
    )


def whiskers(models: Sequence[tuple[str, int | None, float, float, float, str]]) -> list[Whisker]:
    """Intervals on one scale, of (name, colour, low, figure, high, text)."""
    low, high = min(low for _, _, low, _, _, _ in models), max(high for _, _, _, _, high, _ in models)
    margin = (high - low) * 0.04 or abs(low) * 0.05 or 1.0

    def along(value: float) -> str:
        return f"{(value - low + margin) / (high - low + 2 * margin) * SPAN:.1f}"

    middle = SPAN // 2
    return [
        Whisker(name, colour, f"M{along(least)} {middle}H{along(most)}", f"M{along(figure)} {middle}h0", text)
        for name, colour, least, figure, most, text in models
    ]


def ranked_area(title: str, scores: Sequence[float], kept: int, unit: str, note: str = "") -> Area:
    """`scores` from high to low as an area, the first `kept` of them told from the rest."""
    ordered = sorted((max(s, 0.0) for s in scores if math.isfinite(s)), reverse=True)
    highest = ordered[0] if ordered and ordered[0] > 0 else 1.0
    count = max(len(ordered), 1)
    heights = [(i + 0.5, y) for i, y in enumerate(ordered)]

    def area(points: Sequence[Point], start: float, end: float) -> str:
        if not points:
            return ""
        first, last = points[0][1], points[-1][1]
        inner = "L".join(f"{x / count * SPAN:.1f} {(1 - y / highest) * SPAN:.1f}" for x, y in thin(points))
        a, b = start / count * SPAN, end / count * SPAN
        return (
            f"M{a:.1f} {SPAN}L{a:.1f} {(1 - first / highest) * SPAN:.1f}L{inner}"
            f"L{b:.1f} {(1 - last / highest) * SPAN:.1f}L{b:.1f} {SPAN}Z"
        )

    total = sum(ordered) or 1.0
    share = sum(ordered[:kept]) / total
    return Area(
        title=title,
        note=note,
        kept=area(heights[:kept], 0, kept),
        cut=area(heights[kept:], kept, count),
        cut_at=kept / count * 100,
        kept_label=f"{kept:,} {unit} kept",
        cut_label=f"{len(ordered) - kept:,} cut" if kept < len(ordered) else "",
        description=f"{kept} of {len(ordered)} {unit} kept; they hold {share:.0%} of the importance",
    )
