"""The cuts that lead from a teacher to a student, and what each of them chose. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compression_pipeline.config import Architecture, PruneConfig, student_architecture
from compression_pipeline.importance import Scores


@dataclass(frozen=True)
class Cut:
    """One cut: the shape that it led to, the scores that it was chosen by, and the teacher's layers that were left."""

    shape: Architecture
    scores: Scores
    layers: Sequence[int]

    def to_json(self) -> dict[str, Any]:
        """For people and tools; layers are counted from 1."""
        return {
            "layers": [layer + 1 for layer in self.layers],
            "hiddenSize": self.shape.hidden_size,
            "ffnHiddenSize": self.shape.ffn_hidden_size,
            "attentionHeads": self.shape.attention_heads,
            "parameters": self.shape.parameters,
        }


def cutting_steps(teacher: Architecture, prune: PruneConfig) -> list[PruneConfig]:
    """`prune` in `prune.iterations` cuts, each told of the model as the one before it left it; fewer where so many
    different ones do not lie between. The last has the sizes of `prune`.

    Widths shrink by equal factors, to multiples of the divisor; heads likewise, to multiples of the teacher's key/value
    heads; layers by equal numbers. Layers that the user names go with the first.
    """
    steps: list[PruneConfig] = []
    shape = teacher
    for number in range(1, prune.iterations + 1):
        share = number / prune.iterations
        told = prune.model_copy(
            update={
                "hidden_size": _width(teacher.hidden_size, prune.hidden_size, share, prune.divisor),
                "ffn_hidden_size": _width(teacher.ffn_hidden_size, prune.ffn_hidden_size, share, prune.divisor),
                "attention_heads": _width(teacher.attention_heads, prune.attention_heads, share, teacher.query_groups),
                "layers": prune.layers and teacher.layers - round((teacher.layers - prune.layers) * share),
                "drop_layers": None if steps else prune.drop_layers,
            }
        )
        after = student_architecture(shape, told)
        if after != shape or number == prune.iterations:
            steps.append(told)
            shape = after
    return steps


def _width(has: int, wanted: int | None, share: float, divisor: int) -> int | None:
    """The width after `share` of the cuts: the nearest multiple, on a logarithmic scale, from what is wanted on."""
    if wanted is None or share == 1:
        return wanted
    exact = has * (wanted / has) ** share
    nearest = round(exact / divisor) * divisor
    return has if nearest >= has else max(nearest, wanted)
