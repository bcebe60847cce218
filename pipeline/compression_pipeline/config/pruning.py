"""What a student keeps of its teacher (structured pruning, Minitron, arXiv 2407.14679)."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.alias_generators import to_camel

from .architecture import Architecture
from .base import ConfigModel, Operational, Rule, Unordered, cel_indivisible, indivisible
from .importance import Aggregation, ImportanceConfig
from .targets import AXES, MEASURED, SearchedAxis, TargetConfig

LayerNumber = Annotated[int, Field(ge=1, le=1024, description="Number of a layer. The first is 1.")]


def _divisible(path: str, size: Callable[["PruneConfig"], int | None]) -> Rule:
    template = "%d is not divisible by %d"

    def check(prune: "PruneConfig") -> str | None:
        value = size(prune)
        if value is None or value % prune.divisor == 0:
            return None
        return indivisible(template, (value, prune.divisor), value, prune.divisor)

    value, divisor = f"self.{path}", "self.divisor"
    return Rule(
        path,
        check,
        cel=f"!has({value}) || {value} < 1 || {divisor} < 1 || {value} % {divisor} == 0",
        message=cel_indivisible(template, (value, divisor), value, divisor),
    )


ONE_SAMPLE = "is 1, and the variance over one sequence (importance.aggregation.batch) is 0 for all; give at least 2"

SIZES = (*AXES.values(), "drop_layers")
"""Fields that give a size."""

_CEL_SIZES = " || ".join(f"has(self.{to_camel(field)})" for field in SIZES)


def _gives_sizes(prune: "PruneConfig") -> bool:
    return any(getattr(prune, field) is not None for field in SIZES)


def _prunes_heads(prune: "PruneConfig") -> bool:
    searched = prune.target is not None and SearchedAxis.ATTENTION_HEADS in prune.target.axes
    return prune.attention_heads is not None or searched


class PrunedHeads(StrEnum):
    """What becomes of attention heads that are pruned."""

    DROP = "Drop"
    MERGE = "Merge"


class PruneConfig(ConfigModel):
    """The student's sizes, or a target that they are searched for. A size that isn't given stays the teacher's."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _divisible("hiddenSize", lambda prune: prune.hidden_size),
        _divisible("ffnHiddenSize", lambda prune: prune.ffn_hidden_size),
        Rule.of(
            "dropLayers",
            "cannot be combined with layers; list the layers to drop or give the number to keep",
            lambda prune: prune.layers is None or prune.drop_layers is None,
            "!has(self.layers) || !has(self.dropLayers)",
        ),
        Rule.of(
            "prunedHeads",
            "merges heads, and none are pruned; give attentionHeads, or leave prunedHeads out",
            lambda prune: prune.pruned_heads != PrunedHeads.MERGE or _prunes_heads(prune),
            "self.prunedHeads != 'Merge' || has(self.attentionHeads) || "
            "has(self.target) && 'attentionHeads' in self.target.axes",
        ),
        Rule.of(
            "calibrationSamples",
            ONE_SAMPLE,
            lambda prune: prune.calibration_samples > 1 or prune.importance.aggregation.batch != Aggregation.VARIANCE,
            "self.calibrationSamples != 1 || self.importance.aggregation.batch != 'Variance'",
        ),
        Rule.of(
            "",
            "prunes nothing; give hiddenSize, ffnHiddenSize, attentionHeads, layers, dropLayers or target",
            lambda prune: _gives_sizes(prune) or prune.target is not None,
            f"{_CEL_SIZES} || has(self.target)",
        ),
        Rule.of(
            "target",
            "cannot be combined with sizes; give the sizes, or the target and bounds of its search",
            lambda prune: prune.target is None or not _gives_sizes(prune),
            f"!has(self.target) || !({_CEL_SIZES})",
        ),
    )

    hidden_size: int | None = Field(
        default=None, ge=1, le=1_048_576, description="Width of the residual stream. Default: the teacher's."
    )
    ffn_hidden_size: int | None = Field(
        default=None,
        ge=1,
        le=4_194_304,
        description="Width of the feed-forward block (intermediate_size). Default: the teacher's.",
    )
    attention_heads: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Number of query heads, a multiple of the teacher's key/value heads. Each key/value group keeps "
        "equally many. Default: the teacher's.",
    )
    pruned_heads: PrunedHeads = Field(
        default=PrunedHeads.DROP,
        description="What becomes of query heads that are pruned. Merge makes the least important kept heads of "
        "each key/value group differ more from the most important pruned ones (arXiv 2407.14679, section 2.3).",
    )
    layers: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Number of layers to keep. The method importance.depth selects the most important ones. Cannot be "
        "combined with dropLayers.",
    )
    drop_layers: Annotated[list[LayerNumber] | None, Unordered()] = Field(
        default=None,
        min_length=1,
        max_length=1023,
        json_schema_extra={"x-kubernetes-list-type": "set"},
        description="Layers to drop, counted from 1. Dropping 16 to 31 of 32 layers keeps 1 to 15 and 32, the last. "
        "Cannot be combined with layers.",
    )
    target: TargetConfig | None = Field(
        default=None,
        description="Size that the student shall have, instead of sizes of its parts. The shape is searched, in a step "
        "of its own that measures candidates, unless rank is Shape.",
    )
    divisor: Annotated[int, Operational(unless="target")] = Field(
        default=64,
        ge=1,
        le=4096,
        description="Number that hiddenSize and ffnHiddenSize must be multiples of. 64 suits tensor cores. Lower it "
        "for small models. With target, a change of it searches again.",
    )
    iterations: int = Field(
        default=1,
        ge=1,
        le=32,
        description="Number of cuts that lead to these sizes. Importance is measured again before each, on the model "
        "as it was cut so far. Widths shrink by equal factors, layers by equal numbers; dropLayers go first.",
    )
    importance: ImportanceConfig = Field(
        default=ImportanceConfig(), description="Methods that rank channels, neurons, heads and layers by importance."
    )
    calibration_samples: int = Field(
        default=1024, ge=1, le=1_048_576, description="Number of training sequences for measuring importance."
    )

    @property
    def searches(self) -> bool:
        """Whether the sizes are searched by measurement, in a step of its own."""
        return self.target is not None and self.target.measured

    @property
    def shaping(self) -> "PruneConfig":
        """What shapes the student: the least cut candidate is the same, however many others there are."""
        if self.target is None or self.target.measured:
            return self
        return self.model_copy(update={"target": self.target.model_copy(update={"candidates": MEASURED})})

    def of_shape(self, teacher: Architecture, shape: Architecture) -> "PruneConfig":
        """The same with these sizes instead of a target; what stays the teacher's is not given."""
        sizes = {field: getattr(shape, field) for field in AXES.values()}
        cut = {field: size for field, size in sizes.items() if size != getattr(teacher, field)}
        return self.model_copy(update={"target": None, **cut})
