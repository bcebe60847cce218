"""Outputs of chosen layers."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from compression_pipeline.config.architecture import Architecture
from compression_pipeline.config.base import ConfigModel

from .base import Needs
from .states import StatesLoss

PARTS = 4
"""Layers that are compared if none are named: the last of each quarter."""


class LayerPair(ConfigModel):
    """Two layers whose outputs are compared."""

    student: int = Field(ge=1, le=1024, description="Layer of the student, counted from 1.")
    teacher: int = Field(ge=1, le=1024, description="Layer of the teacher, counted from 1.")


class HiddenStates(StatesLoss):
    """Distance of the outputs of pairs of layers, a mean over the pairs, per token (arXiv 2407.14679, section 2.4)."""

    implementation: ClassVar[str] = "compression_pipeline.losses.hidden_states:HiddenStatesLoss"

    layer_map: list[LayerPair] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
        description="Pairs of layers whose outputs are compared. Default: the last layer of each quarter of both "
        "models.",
    )

    def pairs(self, teacher: Architecture, student: Architecture) -> tuple[tuple[int, int], ...]:
        """(student's layer, teacher's layer), counted from 1."""
        if self.layer_map is not None:
            return tuple((pair.student, pair.teacher) for pair in self.layer_map)
        parts = min(PARTS, student.layers)
        return tuple((student.layers * part // parts, teacher.layers * part // parts) for part in range(1, parts + 1))

    @property
    def words(self) -> str:
        which = f"{len(self.layer_map)} pairs of layers" if self.layer_map else "layers at each quarter of the depth"
        return f"{self.distance.words} of the outputs of {which}"

    def needs(self, teacher: Architecture, student: Architecture) -> Needs:
        return Needs(hidden=self.pairs(teacher, student))

    def faults(self, teacher: Architecture, student: Architecture) -> Iterator[tuple[str, str]]:
        for index, pair in enumerate(self.layer_map or ()):
            for field, layer, has in (
                ("student", pair.student, student.layers),
                ("teacher", pair.teacher, teacher.layers),
            ):
                if layer > has:
                    yield f"layerMap[{index}].{field}", f"the {field} has layers 1 to {has}; there is no layer {layer}"
