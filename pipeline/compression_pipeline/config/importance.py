"""By which method the parts of each axis are ranked. A method is a file in `compression_pipeline.importance` and an
entry in `METHODS`; nothing else names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from .base import ConfigModel


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
    meaning: str = ""
    """What a high score says of a part, for the report: a phrase."""


METHODS: dict[str, Method] = {
    "ActivationMagnitude": Method(
        words="their activations",
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
}


class MethodOf:
    """Annotates a field that names a method for an axis. The table is read when a value or a schema is made."""

    def __init__(self, axis: Axis) -> None:
        self._axis = axis

    def known(self) -> list[str]:
        """The methods for the axis."""
        return [name for name, method in METHODS.items() if self._axis in method.implementations]

    def read(self, value: str) -> str:
        """`value`. Raises PydanticCustomError where there is no such method for the axis."""
        if value not in self.known():
            told = {"given": value, "axis": self._axis.value, "known": ", ".join(self.known())}
            raise PydanticCustomError("method", "{given} is not supported for {axis}, supported: {known}", told)
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "enum": self.known()}


class ImportanceConfig(ConfigModel):
    """A method for each axis. All axes are scored, those that stay whole too; the report shows the scores."""

    hidden: Annotated[str, MethodOf(Axis.HIDDEN)] = Field(
        default="ActivationMagnitude",
        description="Method for hidden channels. ActivationMagnitude ranks them by the outputs of all norm layers.",
    )
    ffn: Annotated[str, MethodOf(Axis.FFN)] = Field(
        default="ActivationMagnitude",
        description="Method for feed-forward neurons. ActivationMagnitude ranks them by the input of the down "
        "projection.",
    )
    heads: Annotated[str, MethodOf(Axis.HEADS)] = Field(
        default="ActivationMagnitude",
        description="Method for attention heads, within each key/value group. ActivationMagnitude ranks them by the "
        "input of the output projection.",
    )
    depth: Annotated[str, MethodOf(Axis.LAYERS)] = Field(
        default="BlockInfluence",
        description="Method for layers. BlockInfluence ranks them by how much each changes its input.",
    )

    def by_axis(self) -> dict[Axis, str]:
        """Axis -> name of its method."""
        return {Axis.HIDDEN: self.hidden, Axis.FFN: self.ffn, Axis.HEADS: self.heads, Axis.LAYERS: self.depth}


def method_words(name: str) -> str:
    """What parts were ranked by; the name itself of a method that another version knows."""
    return METHODS[name].words if name in METHODS else name
