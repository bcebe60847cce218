"""Which shapes are timed where a target is in tokens per second (`prune.target.tokensPerSecond`). Pure.

A speed cannot be computed from a shape, and too many shapes are tried to time them all. Along a chain a model only gets
smaller, so no slower: a few measurements find the least cut shape that is fast enough.
"""

import math
from collections.abc import Callable, Sequence

from .architecture import Architecture
from .shapes import Search, Shape
from .targets import AXES, SearchedAxis

STEP = 1 / 32
"""By how much the logarithm of a width shrinks from one shape of a chain to the next, about 3 %."""

WIDTHS = (SearchedAxis.HIDDEN_SIZE, SearchedAxis.FFN_HIDDEN_SIZE, SearchedAxis.ATTENTION_HEADS)

Chain = Sequence[Architecture]
"""Shapes of students, each no larger than the one before along any axis."""


def chains(search: Search) -> list[Chain]:
    """At most `target.candidates` chains, those with more layers first.

    Widths shrink together, for each of some numbers of layers: evenly chosen where there are more than chains. With one
    number of layers there are other chains on which one width shrinks twice as fast as the others. Where widths are not
    searched, there is one chain, of layers.
    """
    layers, axes = search.sizes(SearchedAxis.LAYERS)[::-1], [axis for axis in WIDTHS if axis in search.target.axes]
    if not axes:
        found = [[Shape.of(search.teacher)._replace(layers=count) for count in layers]]
    else:
        rays = [dict.fromkeys(axes, 1.0)]
        if len(layers) == 1 and len(axes) > 1:
            rays += [{**rays[0], axis: 2.0} for axis in axes]
        most = search.target.candidates
        found = [_shrinking(search, count, ray) for count in _evenly(layers, most) for ray in rays][:most]
    has = Shape.of(search.teacher)
    made = [[shape.architecture(search.teacher) for shape in chain if shape != has] for chain in found]
    return [chain for chain in made if chain]


def timed_at_most(found: Sequence[Chain]) -> int:
    """How many shapes of these chains are timed at most, the teacher not counted."""
    return sum(1 + math.ceil(math.log2(len(chain))) for chain in found)


def fast_enough(found: Sequence[Chain], least: float, speed: Callable[[Architecture], float]) -> list[Architecture]:
    """Of each chain the least cut shape whose `speed` is `least` or more, if there is one; none that is smaller than
    another of them along every axis. `speed` is asked of a few shapes, of some more than once.
    """
    fast: list[Architecture] = []
    for chain in found:
        # What is smaller than a shape that is fast enough is so, too: the chains before tell of this one.
        known = next((i for i, one in enumerate(chain) if any(_within(one, other) for other in fast)), None)
        if known is None and speed(chain[-1]) < least:
            continue
        low, high = 0, len(chain) - 1 if known is None else known
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if speed(chain[middle]) >= least else (middle + 1, high)
        fast += [chain[high]] if chain[high] not in fast else []
    return [one for one in fast if not any(one is not other and _within(one, other) for other in fast)]


def _shrinking(search: Search, layers: int, rates: dict[SearchedAxis, float]) -> list[Shape]:
    """Shapes with so many layers, each once, from the least cut one to the smallest."""
    sizes = {axis: search.sizes(axis) for axis in rates}
    steps = max(math.ceil(math.log(of[-1] / of[0]) / (STEP * rates[axis])) for axis, of in sizes.items())
    found: list[Shape] = []
    for step in range(steps + 1):
        widths = {AXES[axis]: _nearest(of, of[-1] * math.exp(-STEP * rates[axis] * step)) for axis, of in sizes.items()}
        shape = Shape.of(search.teacher)._replace(layers=layers, **widths)
        found += [shape] if not found or found[-1] != shape else []
    return found


def _nearest(sizes: Sequence[int], wanted: float) -> int:
    return min(sizes, key=lambda size: abs(size - wanted))


def _evenly(sizes: Sequence[int], most: int) -> list[int]:
    """So many of the sizes, the first and the last among them."""
    if len(sizes) <= most:
        return list(sizes)
    if most == 1:
        return [sizes[0]]
    return [sizes[round(n * (len(sizes) - 1) / (most - 1))] for n in range(most)]


def _within(one: Architecture, other: Architecture) -> bool:
    """Whether a shape is no larger than another along any axis."""
    return all(a <= b for a, b in zip(Shape.of(one), Shape.of(other), strict=True))
