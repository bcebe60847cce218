"""By which method the parts of each axis are ranked. A method is a file in `compression_pipeline.importance` and an
entry in `METHODS`; nothing else names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from .base import ConfigModel, Rule
from .members import NameOf

SCORES = "scores"
"""What artifacts are called that hold what a method has measured of a teacher: scores-<key>. No phase's own."""


class Axis(StrEnum):
    """What a model can be made smaller along."""

    HIDDEN = "hidden"
    FFN = "ffn"
    HEADS = "heads"
    LAYERS = "layers"


@dataclass(frozen=True)
class Method:
    """One way to tell what matters, and the axes that it ranks."""

    words: str
    """What parts are ranked by, for report and card: a phrase."""
    implementations: Mapping[Axis, str]
    """Axis -> `module:class`, an `Estimator` or a `Measurement` of `compression_pipeline.importance`."""
    aggregates: bool = False
    """Whether it makes one score of many activations as `ImportanceConfig.aggregation` says."""
    held_out: bool = False
    """Whether it measures on held-out text, of which it takes `ImportanceConfig.held_out_sequences`."""
    asks: bool = False
    """Whether it scores the model by a task (`ImportanceConfig.depth_task`)."""
    meaning: str = ""
    """What a high score says of a part, for the report: a phrase."""

    @property
    def sweeps(self) -> bool:
        """Whether it leaves out blocks of as many layers as are to be cut."""
        return self.held_out or self.asks


METHODS: dict[str, Method] = {
    "ActivationMagnitude": Method(
        words="their activations",
        aggregates=True,
        implementations={
            Axis.HIDDEN: "compression_pipeline.importance.hidden:HiddenChannels",
            Axis.FFN: "compression_pipeline.importance.ffn:FeedForwardNeurons",
            Axis.HEADS: "compression_pipeline.importance.heads:AttentionHeads",
        },
    ),
    "BlockInfluence": Method(
        words="block influence",
        implementations={Axis.LAYERS: "compression_pipeline.importance.layers:BlockInfluence"},
        meaning="how much a layer changes what passes through it",
    ),
    "LMLoss": Method(
        words="the loss without them",
        implementations={Axis.LAYERS: "compression_pipeline.importance.lm_loss:LMLoss"},
        held_out=True,
        meaning="how much the loss of held-out text rises without the layer",
    ),
    "Task": Method(
        words="the score without them",
        implementations={Axis.LAYERS: "compression_pipeline.importance.task:TaskScore"},
        asks=True,
        meaning="how much worse the score in the task is without the layer",
    ),
}


ASKING = [name for name, method in METHODS.items() if method.asks]
"""The methods that score the model by a task."""

_SWEEPS = [name for name, method in METHODS.items() if method.sweeps]
_ON_TRAINING_TEXT = [
    name for name, method in METHODS.items() if Axis.LAYERS in method.implementations and name not in _SWEEPS
]

HELD_OUT_SEQUENCES = 64


def method_for(axis: Axis) -> NameOf:
    """Annotates a field that names a method for the axis."""
    return NameOf(lambda: [name for name, method in METHODS.items() if axis in method.implementations], f"for {axis}")


class Aggregation(StrEnum):
    """How many values of one channel become one (arXiv 2407.14679, section 2.2)."""

    MEAN = "Mean"
    L2 = "L2"
    VARIANCE = "Variance"


class AggregationConfig(ConfigModel):
    """How the activations of a channel become its score: over the tokens of each sequence, then over sequences. The
    defaults are those of the published recipe.
    """

    sequence: Aggregation = Field(
        default=Aggregation.MEAN,
        description="Over the tokens of a sequence: Mean of absolute values, L2 the root of the sum of squares, "
        "Variance the mean square of the distance from the mean.",
    )
    batch: Aggregation = Field(
        default=Aggregation.L2, description="Over sequences, of what the tokens of each gave, in the same words."
    )


class ImportanceConfig(ConfigModel):
    """A method for each axis. All axes are scored, those that stay whole too; the report shows the scores."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule.of(
            "depthSamples",
            f"is a setting of depth: {' or '.join(_SWEEPS)}; leave it out, or change depth",
            lambda importance: importance.depth_samples is None or importance.depth not in _ON_TRAINING_TEXT,
            f"!has(self.depthSamples) || self.depthSamples < 1 || !(self.depth in {_ON_TRAINING_TEXT})",
        ),
        Rule.of(
            "depthTask",
            f"is a setting of depth: {' or '.join(ASKING)}; leave it out, or change depth",
            lambda importance: importance.depth_task is None or importance.depth in ASKING,
            f"!has(self.depthTask) || self.depth in {ASKING}",
        ),
    )

    hidden: Annotated[str, method_for(Axis.HIDDEN)] = Field(
        default="ActivationMagnitude",
        description="Method for hidden channels. ActivationMagnitude ranks them by the outputs of all norm layers.",
    )
    ffn: Annotated[str, method_for(Axis.FFN)] = Field(
        default="ActivationMagnitude",
        description="Method for feed-forward neurons. ActivationMagnitude ranks them by the input of the down "
        "projection.",
    )
    heads: Annotated[str, method_for(Axis.HEADS)] = Field(
        default="ActivationMagnitude",
        description="Method for attention heads, within each key/value group. ActivationMagnitude ranks them by the "
        "input of the output projection.",
    )
    depth: Annotated[str, method_for(Axis.LAYERS)] = Field(
        default="BlockInfluence",
        description="Method for layers. BlockInfluence ranks them by how much each changes its input. LMLoss drops "
        "the contiguous block without which the loss on held-out text is lowest. That is the validation text, so "
        "validation losses favour its choice slightly. Task drops the one without which the score in a task is best; "
        "of equal scores, which are many where questions are few, the later block, as in the papers.",
    )
    depth_samples: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description=f"Number of held-out sequences on which LMLoss measures ({HELD_OUT_SEQUENCES} unless set), or of "
        "questions that Task asks of the model without each block of layers (the task's limit unless set).",
    )
    depth_task: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="Name of the task of evaluate.tasks by which Task scores. Default: the first one.",
    )
    aggregation: AggregationConfig = Field(
        default=AggregationConfig(),
        description="How ActivationMagnitude makes one score of many activations.",
    )

    @property
    def held_out_sequences(self) -> int:
        """How many a method takes that measures on held-out text, if there are as many."""
        return self.depth_samples or HELD_OUT_SEQUENCES

    def by_axis(self) -> dict[Axis, str]:
        """Axis -> name of its method."""
        return {Axis.HIDDEN: self.hidden, Axis.FFN: self.ffn, Axis.HEADS: self.heads, Axis.LAYERS: self.depth}


def method_words(name: str) -> str:
    """What parts were ranked by; the name itself of a method that another version knows."""
    return METHODS[name].words if name in METHODS else name


def aggregation_words(told: Mapping[str, Any] | None) -> str:
    """How activations were aggregated, from what a manifest says of it, which another version may have written."""
    default = AggregationConfig()
    named = {Aggregation.MEAN: "mean", Aggregation.L2: "L2 norm", Aggregation.VARIANCE: "variance"}
    sequence, batch = ((told or {}).get(axis) or getattr(default, axis) for axis in ("sequence", "batch"))
    return f"{named.get(sequence, sequence)} over each sequence, {named.get(batch, batch)} over sequences"
