"""What a student is trained to match. A loss is a file here, its torch half in `compression_pipeline.losses`, and a
line in `LOSSES`.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from compression_pipeline.config.architecture import Architecture
from compression_pipeline.config.members import OneOf, table

from .auto import Auto
from .base import Balance, LossConfig, Needs
from .cross_entropy import CrossEntropy
from .embeddings import Embeddings
from .hidden_states import HiddenStates
from .logits_cosine import LogitsCosine
from .logits_jensen_shannon import LogitsJensenShannon
from .logits_kl import LogitsKL
from .logits_mse import LogitsMSE
from .logits_reverse_kl import LogitsReverseKL
from .logits_top_k_kl import LogitsTopKKL

LOSSES: dict[str, type[LossConfig]] = table(
    LogitsKL,
    LogitsReverseKL,
    LogitsJensenShannon,
    LogitsTopKKL,
    LogitsMSE,
    LogitsCosine,
    CrossEntropy,
    HiddenStates,
    Embeddings,
    Auto,
)

LossField = Annotated[LossConfig, OneOf(LOSSES, "Kind of loss.")]


def losses_in_words(losses: Sequence[LossConfig]) -> str:
    """The sum as a sentence without its full stop."""
    return "; plus ".join(_term(loss) for loss in losses)


def _term(loss: LossConfig) -> str:
    words = loss.words if loss.weight == 1 else f"{loss.weight:g} times the {loss.words}"
    return f"{words}, scaled in every sequence to the loss on the logits" if loss.balance is Balance.DYNAMIC else words


def resolved_losses(losses: Sequence[LossConfig], teacher: Architecture, student: Architecture) -> list[LossConfig]:
    """The terms of the sum for models of these sizes: rules are replaced by what they choose."""
    return [term for loss in losses for term in loss.resolved(teacher, student)]


def describe_losses(losses: Sequence[LossConfig], teacher: Architecture, student: Architecture) -> str:
    """What is lowered for models of these sizes, and why where a rule chose it."""
    reasons = filter(None, dict.fromkeys(loss.reason(teacher, student) for loss in losses))
    chosen = "".join(f" ({reason})" for reason in reasons)
    return losses_in_words(resolved_losses(losses, teacher, student)) + chosen


def is_balanced(losses: Sequence[LossConfig]) -> bool:
    """Whether there is something on the logits for what is scaled to it."""
    fixed = [loss for loss in losses if loss.balance == Balance.FIXED]
    return len(fixed) == len(losses) or any(loss.type in ON_LOGITS for loss in fixed)


ON_LOGITS = [name for name, loss in LOSSES.items() if loss.compares_logits]
"""Names of the losses that compare logits, with models of any sizes."""


def loss_faults(
    losses: Sequence[LossConfig], teacher: Architecture, student: Architecture
) -> Iterator[tuple[str, str]]:
    """What is wrong with the losses for these models, as (path below `distill`, sentence)."""
    for index, loss in enumerate(losses):
        for field, sentence in (
            fault for term in loss.resolved(teacher, student) for fault in term.faults(teacher, student)
        ):
            yield f"losses[{index}].{field}", sentence


__all__ = [
    "LOSSES",
    "ON_LOGITS",
    "Balance",
    "LogitsKL",
    "LossConfig",
    "LossField",
    "Needs",
    "describe_losses",
    "is_balanced",
    "loss_faults",
    "losses_in_words",
    "resolved_losses",
]
