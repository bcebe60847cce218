"""How much each part of a model matters (Minitron, arXiv 2407.14679, section 2.2), one file per axis.

`measure` runs every estimator over the same forward passes. A new estimator is a file here and a line in `AXES`.
"""

from .base import Estimator, Scores
from .ffn import FeedForwardNeurons
from .heads import AttentionHeads
from .hidden import HiddenChannels
from .layers import BlockInfluence
from .measuring import measure
from .ranking import Choice, choose

AXES: dict[str, type[Estimator]] = {
    "hidden": HiddenChannels,
    "ffn": FeedForwardNeurons,
    "heads": AttentionHeads,
    "layers": BlockInfluence,
}

__all__ = ["AXES", "Choice", "Estimator", "Scores", "choose", "measure"]
