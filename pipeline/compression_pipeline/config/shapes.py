"""Which shapes of a teacher meet a target (`prune.target`), and which of them are worth a measurement. Pure.

What is chosen enters no fingerprint but by the target: another order is another student under the same key, so a change
of it raises `SCHEMA_VERSION`.
"""

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple, TypeAlias

from pydantic import Field

from .architecture import Architecture
from .base import Record
from .figures import human_bytes, quantity_bytes
from .pruning import PruneConfig
from .targets import AXES, CACHED_TOKENS, SearchedAxis, TargetConfig
from .tasks import TaskScore

NUMBER = 2
"""Bytes of a weight, a key or a value where memory is the target: bfloat16 or float16."""

WEIGHTS = (3, 1, 1, 1)
"""How much a cut counts along each field of `Shape`: layers more, for width beats depth after retraining (arXiv
2407.14679, best practices, and 2408.11796, table 1).
"""

ALIKE = math.log(10 / 9)
"""Two shapes are nearly alike that differ by less than this logarithm of a ratio on every axis: about 10 %."""

MOST_TRIED = 100_000
"""Combinations of layers, heads and hidden size that are tried at most: half a second for 70,000, in which an operator
does nothing else.
"""

_Rank: TypeAlias = tuple[float, float]

REMEMBERED = 1024
"""Searches whose candidates are kept in memory, some kilobytes each: an operator asks for those of all runs again and
again, and if it has more of them, every pass searches anew.
"""

NAMED = 2
"""Shapes that are named on each side of a target that none meets."""


class Shape(NamedTuple):
    """The sizes that pruning changes."""

    layers: int
    hidden_size: int
    ffn_hidden_size: int
    attention_heads: int

    @classmethod
    def of(cls, model: Architecture) -> "Shape":
        """The shape of a model."""
        return cls(model.layers, model.hidden_size, model.ffn_hidden_size, model.attention_heads)

    def architecture(self, teacher: Architecture) -> Architecture:
        """The student of this shape."""
        return teacher.model_copy(update=self._asdict())

    def __str__(self) -> str:
        return (
            f"{self.layers} layers, hidden {self.hidden_size}, FFN {self.ffn_hidden_size}, {self.attention_heads} heads"
        )


@dataclass(frozen=True)
class Found:
    """What meets a target."""

    count: int
    """All shapes that do."""
    best: Sequence[Architecture]
    """The candidates, the least cut first."""


class Sizes(Record):
    """A shape, as a status or a result tells it."""

    layers: int = Field(description="Number of layers.")
    hidden_size: int = Field(description="Width of the residual stream.")
    ffn_hidden_size: int = Field(description="Width of the feed-forward block.")
    attention_heads: int = Field(description="Number of query heads.")

    @property
    def shape(self) -> Shape:
        return Shape(self.layers, self.hidden_size, self.ffn_hidden_size, self.attention_heads)


class Candidate(Sizes):
    """One shape that a search measures, and what was found of it."""

    parameters: int = Field(description="Number of parameters.")
    flops: float = Field(description="Operations of a forward pass, for one token of the dataset's sequences.")
    memory: int = Field(
        description="Bytes of the weights, and of keys and values of target.cachedTokens tokens, two for each number."
    )
    pruned_loss: float | None = Field(default=None, description="Validation loss after pruning, before any training.")
    distilled_loss: float | None = Field(
        default=None, description="Validation loss after the short distillation. Unset without target.distillSteps."
    )
    score: float | None = Field(
        default=None,
        description="Score in the task that target.rank names: after the short distillation, or else after pruning.",
    )
    score_stderr: float | None = Field(default=None, description="Standard error of the score.")
    tokens_per_second: float | None = Field(
        default=None, description="Tokens generated a second, where target.tokensPerSecond was searched for."
    )

    def loss(self, *, distilled: bool) -> float | None:
        """What it is chosen by; None where that is no number. `distilled`: whether the search distils candidates."""
        return self.distilled_loss if distilled else self.pruned_loss

    def task_score(self, whole: TaskScore) -> TaskScore | None:
        """Its score in full. `whole`: the teacher's, in the same task; None where it was not scored."""
        if self.score is None:
            return None
        return whole.model_copy(update={"score": self.score, "stderr": self.score_stderr})


def served_bytes(model: Architecture, cached_tokens: int) -> int:
    """Memory of a model's weights, and of the keys and values of so many tokens, two bytes a number."""
    cached = model.layers * 2 * model.query_groups * model.head_dim * cached_tokens
    return NUMBER * (model.parameters + cached)


@dataclass(frozen=True)
class Search:
    """The shapes of a teacher that a target asks for."""

    teacher: Architecture
    target: TargetConfig
    divisor: int = 1
    """What hidden size and FFN size are multiples of."""

    def __hash__(self) -> int:
        return hash((self.teacher.model_dump_json(), self.target.model_dump_json(), self.divisor))

    @classmethod
    def of(cls, teacher: Architecture, prune: PruneConfig) -> "Search | None":
        """What `prune` asks for; None where it gives the sizes."""
        return cls(teacher, prune.target, prune.divisor) if prune.target is not None else None

    @cached_property
    def wanted(self) -> float:
        """The target, in parameters or bytes. Of a speed, which no shape tells, the largest: the least cut shapes."""
        target = self.target
        if target.tokens_per_second is not None:
            return float(self.teacher.parameters)
        if target.memory is not None:
            return float(quantity_bytes(target.memory) or 0)
        return target.parameters or self.teacher.parameters / (target.ratio or 1)

    @cached_property
    def window(self) -> tuple[int, int]:
        """Least and most parameters or bytes that meet the target. Memory is a limit, so nothing above it does. Every
        shape may have the speed that is wanted.
        """
        if self.target.tokens_per_second is not None:
            return 1, self.teacher.parameters
        off = self.wanted * self.target.tolerance
        most = self.wanted if self.target.memory is not None else self.wanted + off
        return math.ceil(self.wanted - off), math.floor(most)

    def figure(self, model: Architecture) -> int:
        """What the target limits: the parameters of a model, or its memory in bytes."""
        if self.target.memory is None:
            return model.parameters
        return served_bytes(model, self.target.cached_tokens or CACHED_TOKENS)

    def told(self, figure: float) -> str:
        """Such a figure for people."""
        return human_bytes(figure) if self.target.memory is not None else f"{figure:,.0f} parameters"

    def sizes(self, axis: SearchedAxis) -> Sequence[int]:
        """The sizes that are tried along an axis, ascending."""
        has: int = getattr(self.teacher, AXES[axis])
        if axis not in self.target.axes:
            return [has]
        bounds = self.target.bounds(axis)
        own = {
            SearchedAxis.LAYERS: 1,
            SearchedAxis.ATTENTION_HEADS: self.teacher.query_groups,
        }.get(axis, self.divisor)
        divisor = math.lcm(own, bounds.divisor or 1)
        least, most = bounds.min or -(-has // 2), min(bounds.max or has, has)
        tried = range(-(-least // divisor) * divisor, most + 1, divisor)
        return [*tried, has] if least <= has <= most and has not in tried else tried

    def shapes(self) -> Iterator[Shape]:
        """Every shape that meets the target, each once."""
        least, most = self.window
        for at in self.lines(least, most):
            yield from (at.shape(ffn) for ffn in at.between(least, most))

    @property
    def found(self) -> Found:
        """What meets the target, and the candidates among it.

        Of shapes that differ in their FFN alone the one nearest to the target counts. Of these the least cut come
        first, by the sum of the squares of weighted logarithms of the teacher's sizes over the student's, and one
        that is nearly alike a better one is taken only if there are no others.
        """
        return _found(self)

    @property
    def around(self) -> Sequence[Architecture]:
        """The shapes nearest to a target that none meets, on both sides, ascending."""
        return _around(self)

    def least_cut_first(self, students: Sequence[Architecture]) -> list[Architecture]:
        """Students in the order of candidates."""
        return sorted(students, key=lambda one: (self._cut(Shape.of(one)), Shape.of(one)))

    def fault(self) -> tuple[str, str] | None:
        """Field of the target and sentence, where no shape meets it, or too many would have to be tried."""
        for axis in self.target.axes:
            bounds, has = self.target.bounds(axis), getattr(self.teacher, AXES[axis])
            if bounds.min is not None and bounds.min > has:
                return (
                    f"target.{axis.value}.min",
                    f"{bounds.min} is more than the teacher's {has}; pruning only makes it smaller",
                )
            if not self.sizes(axis):
                return f"target.{axis.value}", "leaves no size to try; widen the bounds, or lower a divisor"
        tried = math.prod(len(self.sizes(axis)) for axis in self.target.axes if axis != SearchedAxis.FFN_HIDDEN_SIZE)
        if tried > MOST_TRIED:
            return "target", (
                f"tries {tried:,} combinations of layers, attentionHeads and hiddenSize, and at most {MOST_TRIED:,} "
                "are tried; raise a divisor or a min, or lower a max"
            )
        if self.found.count:
            return None
        if not self.around:
            return "target", "allows the teacher's own shape alone; lower a min, or add to axes"
        named = "; ".join(f"{Shape.of(one)}: {self.told(self.figure(one))}" for one in self.around)
        off = "down to" if self.target.memory is not None else "within"
        return "target", (
            f"no shape has {self.told(self.wanted)} ({off} {100 * self.target.tolerance:.3g} %); the nearest are "
            f"{named}; change the target, its tolerance or its bounds"
        )

    def ranked(self, at: "_Line", ffn: int) -> tuple["_Rank", Shape]:
        """A shape with its place: how much is cut, how far it is from the target."""
        shape = at.shape(ffn)
        return (self._cut(shape), abs(at.figure(ffn) - self.wanted)), shape

    def _cut(self, shape: Shape) -> float:
        """How much is cut. Rounded, so that no last bit of a machine's logarithm decides."""
        sizes = zip(WEIGHTS, Shape.of(self.teacher), shape, strict=True)
        return round(sum((weight * math.log(before / after)) ** 2 for weight, before, after in sizes), 9)

    def cut_before(self, at: "_Line") -> float:
        """What of the cut of its shapes is not the FFN's."""
        return self._cut(at.shape(self.teacher.ffn_hidden_size))

    def lines(self, least: int, most: float) -> Iterator["_Line"]:
        """Shapes that differ in their FFN alone together, but for the teacher's: all lines with a shape whose figure is
        within both, and perhaps some more.
        """
        ffns, layers = self.sizes(SearchedAxis.FFN_HIDDEN_SIZE), self.sizes(SearchedAxis.LAYERS)
        has = Shape.of(self.teacher)
        smaller = ffns[: bisect_left(ffns, has.ffn_hidden_size)]
        if not ffns:
            return
        for heads in self.sizes(SearchedAxis.ATTENTION_HEADS):
            for hidden in self.sizes(SearchedAxis.HIDDEN_SIZE):
                # A figure is linear in the layers, and that of a layer in its FFN.
                one, two, wide = (
                    self.figure(Shape(count, hidden, ffn, heads).architecture(self.teacher))
                    for count, ffn in ((1, 0), (2, 0), (1, 1))
                )
                # It grows with the layers and with the FFN, so those that have such a shape follow each other.
                first = bisect_left(
                    layers, least, key=lambda n: one + (n - 1) * (two - one) + n * (wide - one) * ffns[-1]
                )
                last = bisect_right(
                    layers, most, key=lambda n: one + (n - 1) * (two - one) + n * (wide - one) * ffns[0]
                )
                for count in layers[first:last]:
                    same = (count, hidden, heads) == (has.layers, has.hidden_size, has.attention_heads)
                    tried = smaller if same else ffns
                    if tried:
                        base, slope = one + (count - 1) * (two - one), count * (wide - one)
                        yield _Line(count, hidden, heads, tried, base, slope)


class _Line(NamedTuple):
    """Shapes that differ in their FFN alone."""

    layers: int
    hidden_size: int
    attention_heads: int
    ffns: Sequence[int]
    base: int
    slope: int

    def shape(self, ffn: int) -> Shape:
        return Shape(self.layers, self.hidden_size, ffn, self.attention_heads)

    def figure(self, ffn: int) -> int:
        """`Search.figure` of the shape with this FFN."""
        return self.base + self.slope * ffn

    def between(self, least: int, most: int) -> Sequence[int]:
        """The FFN sizes with which the figure is within both."""
        low, high = -(-(least - self.base) // self.slope), (most - self.base) // self.slope
        return self.ffns[bisect_left(self.ffns, low) : bisect_right(self.ffns, high)]

    def nearest(self, ffns: Sequence[int], wanted: float) -> int:
        """That of these with which the figure is nearest to what is wanted; of two the larger."""
        after = bisect_left(ffns, (wanted - self.base) / self.slope)
        return min(ffns[max(0, after - 1) : after + 1], key=lambda ffn: (abs(self.figure(ffn) - wanted), -ffn))


@lru_cache(maxsize=REMEMBERED)
def _found(search: Search) -> Found:
    """See `Search.found`. The operator asks in every pass."""
    least, most = search.window
    count, meeting = 0, list[tuple[float, _Line]]()
    for at in search.lines(least, most):
        if few := len(at.between(least, most)):
            count += few
            meeting.append((search.cut_before(at), at))
    apart, alike = list[tuple[_Rank, Shape]](), list[tuple[_Rank, Shape]]()
    for one in _least_cut(search, sorted(meeting)):
        if len(apart) == search.target.candidates:
            break
        (alike if any(_alike(one[1], other) for _, other in apart) else apart).append(one)
    kept = sorted([*apart, *alike[: search.target.candidates - len(apart)]])
    return Found(count, [shape.architecture(search.teacher) for _, shape in kept])


def _least_cut(search: Search, meeting: Sequence[tuple[float, "_Line"]]) -> Iterator[tuple[_Rank, Shape]]:
    """The shape of each line that is nearest to the target, the least cut first. `meeting`: the lines with what of the
    cut is not the FFN's, ascending; so a shape comes next if no line that is left can be cut less.
    """
    least, most = search.window
    waiting = list[tuple[_Rank, Shape]]()
    for before, at in meeting:
        while waiting and waiting[0][0][0] < before:
            yield heapq.heappop(waiting)
        heapq.heappush(waiting, search.ranked(at, at.nearest(at.between(least, most), search.wanted)))
    while waiting:
        yield heapq.heappop(waiting)


@lru_cache(maxsize=REMEMBERED)
def _around(search: Search) -> Sequence[Architecture]:
    """See `Search.around`."""
    least, most = search.window
    below, above = list[tuple[float, _Rank, Shape]](), list[tuple[float, _Rank, Shape]]()
    for at in search.lines(0, math.inf):
        smaller, larger = at.between(0, least - 1), at.between(most + 1, at.figure(at.ffns[-1]))
        if smaller:
            below.append((-at.figure(smaller[-1]), *search.ranked(at, smaller[-1])))
        if larger:
            above.append((at.figure(larger[0]), *search.ranked(at, larger[0])))
    found = [*reversed(heapq.nsmallest(NAMED, below)), *heapq.nsmallest(NAMED, above)]
    return [shape.architecture(search.teacher) for _, _, shape in found]


def _alike(one: Shape, other: Shape) -> bool:
    return all(abs(math.log(a / b)) < ALIKE for a, b in zip(one, other, strict=True))
