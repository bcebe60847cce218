"""How large a student shall be, where its sizes are searched and not given (`prune.target`)."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from .base import ConfigModel, Rule, Unordered

KINDS = ("parameters", "ratio", "memory")
"""Fields of a target that say how large, of which it has one."""

CACHED_TOKENS = 8192

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
    return sum(getattr(target, kind) is not None for kind in KINDS)


def _count(fields: tuple[str, ...]) -> str:
    return " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)


def _bounds_of_a_searched_axis(axis: SearchedAxis) -> Rule:
    return Rule.of(
        axis.value,
        f"bounds a size that is not searched; add {axis.value} to axes, or leave it out",
        lambda target: getattr(target, AXES[axis]) is None or axis in target.axes,
        f"!has(self.{axis.value}) || '{axis.value}' in self.axes",
    )


class TargetConfig(ConfigModel):
    """The size that a student shall have. Its shape is searched among all that have it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule.of(
            "",
            "needs exactly one of parameters, ratio and memory",
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
            "distils candidates, and rank: Shape measures none; leave it out, or rank by ValidationLoss",
            lambda target: target.distill_steps is None or target.rank != Ranking.SHAPE,
            "!has(self.distillSteps) || self.rank != 'Shape'",
        ),
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
    tolerance: float = Field(
        default=0.05,
        ge=0,
        le=0.5,
        description="Share of the target that a shape may be off by. Shapes for memory are never above the target.",
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
        "measures its loss on held-out text; in one cut each, also with prune.iterations. Shape takes the least cut "
        "one (see candidates) and measures nothing.",
    )
    distill_steps: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Steps of a short distillation of each candidate, with the settings of the student's distill, but "
        "in the arithmetic that prune measures importance in. The loss after it decides. Default: the loss after "
        "pruning decides.",
    )

    @property
    def measured(self) -> bool:
        """Whether candidates are measured, in a step of its own."""
        return self.rank is not Ranking.SHAPE

    def bounds(self, axis: SearchedAxis) -> SizeBounds:
        """Of an axis that may be cut."""
        return getattr(self, AXES[axis]) or SizeBounds()
