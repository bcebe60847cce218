"""How much each part of a model matters (Minitron, arXiv 2407.14679, section 2.2): the torch half of the methods of
`config.importance.METHODS`, one file per method and axis.
"""

from collections.abc import Collection, Mapping
from importlib import import_module

from compression_pipeline.config import METHODS, Axis, ImportanceConfig

from .base import Estimator, Measurement, Samples, Scores
from .measuring import Scorer, measure
from .ranking import BLOCKS, Choice, block_score, choose, higher_is_better


def scorers(importance: ImportanceConfig, axes: Collection[Axis] = tuple(Axis)) -> Mapping[str, Scorer]:
    """Axis -> what scores its parts, of the axes that are asked for."""
    return {axis.value: _scorer(axis, name) for axis, name in importance.by_axis().items() if axis in axes}


def _scorer(axis: Axis, name: str) -> Scorer:
    module, _, kind = METHODS[name].implementations[axis].partition(":")
    return getattr(import_module(module), kind)


__all__ = [
    "BLOCKS",
    "Choice",
    "Estimator",
    "Measurement",
    "Samples",
    "Scorer",
    "Scores",
    "block_score",
    "choose",
    "higher_is_better",
    "measure",
    "scorers",
]
