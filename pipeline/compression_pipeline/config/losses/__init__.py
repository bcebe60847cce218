"""What a student is trained to match. A loss is a file here, its torch half in `compression_pipeline.losses`, and a
line in `LOSSES`.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from compression_pipeline.config.architecture import Architecture
from compression_pipeline.config.members import OneOf, table

from .base import LossConfig, Needs
from .logits_kl import LogitsKL

LOSSES: dict[str, type[LossConfig]] = table(LogitsKL)

LossField = Annotated[LossConfig, OneOf(LOSSES, "Kind of loss.")]


def losses_in_words(losses: Sequence[LossConfig]) -> str:
    """The sum as a sentence without its full stop."""
    terms = [loss.words if loss.weight == 1 else f"{loss.weight:g} times the {loss.words}" for loss in losses]
    return "; plus ".join(terms)


def loss_faults(
    losses: Sequence[LossConfig], teacher: Architecture, student: Architecture
) -> Iterator[tuple[str, str]]:
    """What is wrong with the losses for these models, as (path below `distill`, sentence)."""
    for index, loss in enumerate(losses):
        for field, sentence in loss.faults(teacher, student):
            yield f"losses[{index}].{field}", sentence


__all__ = ["LOSSES", "LogitsKL", "LossConfig", "LossField", "Needs", "loss_faults", "losses_in_words"]
