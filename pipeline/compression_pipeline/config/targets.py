"""How large a student shall be, where its sizes are searched and not given (`prune.target`)."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from .base import ConfigModel, Rule, Unordered

KINDS = {
    "parameters": "parameters",
    "ratio": "ratio",
    "memory": "memory",
    "tokensPerSecond": "tokens_per_second",
}
"""Fields of a target that say how large or how fast, of which it has one: by their names in JSON."""

CACHED_TOKENS = 8192

TOLERANCE = 0.05

MEASURED = 8
"""Candidates that a search measures where nobody says how many."""

MOST_CANDIDATES = 10
"""Candidates that a search may measure."""


class SearchedAxis(StrEnum):
    """Sizes that a search may cut, by their names in prune."""

    HIDDEN_SIZE = "hiddenSize"
    FFN_HIDDEN_SIZE = "ffnHiddenSize"
    ATTENTION_HEADS = "attentionHeads"
    LAYERS = "layers"


AXES: dict[SearchedAxis, str] = {
    SearchedAxis.HIDDEN_SIZE: "hidden_size",
    SearchedAxis.FFN_HIDDEN_SIZE: "ffn_hidden_size",
    SearchedAxis.ATTENTION_HEADS: "attention_heads",
    SearchedAxis.LAYERS: "layers",
}
"""The field of each axis in a target, in prune's configuration and in an architecture."""


class Ranking(StrEnum):
    """By what the best shape is chosen."""

    VALIDATION_LOSS = "ValidationLoss"
    TASK = "Task"
    SHAPE = "Shape"


def _ordered(bounds: "SizeBounds") -> bool:
    return bounds.min is None or bounds.max is None or bounds.min <= bounds.max


class SizeBounds(ConfigModel):
    """Which sizes of one axis are tried."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule.of(
            "min",
            "must not be above max",
            _ordered,
            "!has(self.min) || !has(self.max) || self.max < 1 || self.min <= self.max",
        ),
    )

    min: int | None = Field(
        default=None,
        ge=1,
        le=4_194_304,
        description="Smallest size that is tried. Default: half of the teacher's.",
    )
    max: int | None = Field(
        default=None, ge=1, le=4_194_304, description="Largest size that is tried. Default: the teacher's."
    )
    divisor: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Number that the sizes are multiples of, unless it is the teacher's size. Those of hiddenSize and "
        "ffnHiddenSize are multiples of prune.divisor, and those of attentionHeads of the teacher's key/value heads, "
        "in any case.",
    )


def _kinds(target: "TargetConfig") -> int:
    return sum(getattr(target, kind) is not None for kind in KINDS.values())


def _count(fields: Iterable[str]) -> str:
    return " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)


def _bounds_of_a_searched_axis(axis: SearchedAxis) -> Rule:
    return Rule.of(
        axis.value,
        f"bounds a size that is not searched; add {axis.value} to axes, or leave it out",
        lambda target: getattr(target, AXES[axis]) is None or axis in target.axes,
        f"!has(self.{axis.value}) || '{axis.value}' in self.axes",
    )


def _of_a_task(field: str, name: str) -> Rule:
    return Rule.of(
        field,
        "is a setting of rank: Task; leave it out, or change rank",
        lambda target: getattr(target, name) is None or target.rank == Ranking.TASK,
        f"!has(self.{field}) || self.rank == '{Ranking.TASK.value}'",
    )


class TargetConfig(ConfigModel):
    """The size that a student shall have. Its shape is searched among all that have it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule.of(
            "",
            "needs exactly one of parameters, ratio, memory and tokensPerSecond",
            lambda target: _kinds(target) == 1,
            f"{_count(KINDS)} == 1",
        ),
        Rule.of(
            "cachedTokens",
            "is a setting of memory; give memory, or leave it out",
            lambda target: target.cached_tokens is None or target.memory is not None,
            "!has(self.cachedTokens) || has(self.memory)",
        ),
        Rule.of(
            "distillSteps",
            "distils candidates, and rank: Shape measures none; leave it out, or rank by ValidationLoss or Task",
            lambda target: target.distill_steps is None or target.rank != Ranking.SHAPE,
            "!has(self.distillSteps) || self.rank != 'Shape'",
        ),
        Rule.of(
            "rank",
            "Shape measures nothing, and tokensPerSecond is measured; rank by ValidationLoss or Task, or give "
            "parameters, ratio or memory",
            lambda target: target.tokens_per_second is None or target.rank != Ranking.SHAPE,
            "!has(self.tokensPerSecond) || self.rank != 'Shape'",
        ),
        Rule.of(
            "tolerance",
            "is how far parameters, ratio and memory may be off, and tokensPerSecond is the least speed; leave it out, "
            "or give a lower tokensPerSecond",
            lambda target: target.tokens_per_second is None or target.tolerance == TOLERANCE,
            f"!has(self.tokensPerSecond) || self.tolerance == {TOLERANCE}",
        ),
        *(_of_a_task(field, name) for field, name in (("rankTask", "rank_task"), ("rankSamples", "rank_samples"))),
        *(_bounds_of_a_searched_axis(axis) for axis in SearchedAxis),
    )

    parameters: float | None = Field(
        default=None, ge=1, le=1e13, examples=[4.5e9], description="Number of parameters that the student shall have."
    )
    ratio: float | None = Field(
        default=None,
        gt=1,
        le=1000,
        description="How many times fewer parameters than the teacher's the student shall have. 2 is half of them.",
    )
    memory: str | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        pattern=r"^[1-9][0-9]*([.][0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$",
        examples=["9Gi"],
        description="Memory that the student's weights and the keys and values of cachedTokens tokens shall fit in, "
        "with two bytes for each number (bfloat16 or float16).",
    )
    cached_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000,
        description="Number of tokens, over all sequences that are served at once, whose keys and values count in "
        f"memory. Default: {CACHED_TOKENS}.",
    )
    tokens_per_second: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        examples=[60],
        description="Tokens a second that the student shall generate, at least: over the whole batch of "
        "evaluate.generation, or its defaults, as evaluate measures it, on the device of the search's pod. Some shapes "
        "are timed with random weights: along chains of ever smaller ones the least cut that is fast enough is "
        "searched by halves, and these are the candidates. A finished search is not timed again on another device.",
    )
    tolerance: float = Field(
        default=TOLERANCE,
        ge=0,
        le=0.5,
        description="Share of the target that a shape may be off by. Shapes for memory are never above the target, and "
        "those for tokensPerSecond never slower, so it is none of their settings.",
    )
    axes: Annotated[list[SearchedAxis], Unordered()] = Field(
        default=[SearchedAxis.HIDDEN_SIZE, SearchedAxis.FFN_HIDDEN_SIZE, SearchedAxis.LAYERS],
        min_length=1,
        max_length=4,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description="Sizes that may be cut. The others stay the teacher's.",
    )
    hidden_size: SizeBounds | None = Field(default=None, description="Bounds of hiddenSize.")
    ffn_hidden_size: SizeBounds | None = Field(default=None, description="Bounds of ffnHiddenSize.")
    attention_heads: SizeBounds | None = Field(default=None, description="Bounds of attentionHeads.")
    layers: SizeBounds | None = Field(default=None, description="Bounds of layers.")
    candidates: int = Field(
        default=MEASURED,
        ge=1,
        le=MOST_CANDIDATES,
        description="Number of shapes that are measured: the least cut ones, no two of them nearly alike. Layers count "
        "as cut three times as much as widths, because students that are cut in width are better after distillation "
        "(arXiv 2407.14679 and 2408.11796).",
    )
    rank: Ranking = Field(
        default=Ranking.VALIDATION_LOSS,
        description="What the best shape is chosen by. ValidationLoss cuts every candidate from the teacher and "
        "measures its loss on held-out text; in one cut each, also with prune.iterations. Task scores each by a task "
        "of evaluate.tasks, too, with its weights rounded to the type of the teacher's; of equal scores the lower loss "
        "decides. Shape takes the least cut one (see candidates) and measures nothing.",
    )
    rank_task: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Name of the task of evaluate.tasks that rank: Task scores candidates by. Default: the first one.",
    )
    rank_samples: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Number of questions that rank: Task asks each candidate. Default: the task's limit.",
    )
    distill_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Steps of a short distillation of each candidate, with the settings of the student's distill, but "
        "in the arithmetic that prune measures importance in. The loss or score after it decides. Default: the one "
        "after pruning decides.",
    )

    @property
    def measured(self) -> bool:
        """Whether candidates are measured, in a step of its own."""
        return self.rank is not Ranking.SHAPE

    def bounds(self, axis: SearchedAxis) -> SizeBounds:
        """Of an axis that may be cut."""
        return getattr(self, AXES[axis]) or SizeBounds()
