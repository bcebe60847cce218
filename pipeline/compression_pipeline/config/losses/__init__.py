"""What a student is trained to match. A loss is a file here, its torch half in `compression_pipeline.losses`, and a
line in `LOSSES`.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from compression_pipeline.config.architecture import Architecture
from compression_pipeline.config.engines import DEFAULT_ENGINE, ENGINES
from compression_pipeline.config.members import OneOf, table

from .auto import CHOSEN, Auto
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
    """What is lowered for models of these sizes, and why, behind the losses that a rule chose."""
    return "; plus ".join(_described(loss, teacher, student, alone=len(losses) == 1) for loss in losses)


def _described(loss: LossConfig, teacher: Architecture, student: Architecture, *, alone: bool) -> str:
    chosen, reason = loss.resolved(teacher, student), loss.reason(teacher, student)
    which = "" if alone or len(chosen) == 1 else f"these {len(chosen)}: "
    return losses_in_words(chosen) + (f" ({which}{reason})" if reason else "")


def twice(losses: Sequence[LossConfig]) -> bool:
    """Whether one type of loss stands there more than once."""
    return len({loss.type for loss in losses}) < len(losses)


def is_clear(losses: Sequence[LossConfig]) -> bool:
    """Whether no loss is named that Auto may choose, beside Auto."""
    types = {loss.type for loss in losses}
    return Auto.__name__ not in types or types.isdisjoint(CHOSEN_BY_AUTO)


CHOSEN_BY_AUTO = [loss.__name__ for loss in CHOSEN]
"""Names of the losses that Auto may choose."""


def is_balanced(losses: Sequence[LossConfig]) -> bool:
    """Whether there is something on the logits for what is scaled to it."""
    fixed = [loss for loss in losses if loss.balance == Balance.FIXED]
    return len(fixed) == len(losses) or any(loss.type in ON_LOGITS for loss in fixed)


ON_LOGITS = [name for name, loss in LOSSES.items() if loss.compares_logits]
"""Names of the losses that compare logits, with models of any sizes."""


OF_LIKELIEST = [name for name, loss in LOSSES.items() if loss.of_likeliest]
"""Names of the losses that need no more of the teacher than its likeliest tokens."""


def loss_faults(
    losses: Sequence[LossConfig],
    teacher: Architecture,
    student: Architecture,
    *,
    engine: str = DEFAULT_ENGINE,
    likeliest: int | None = None,
) -> Iterator[tuple[str, str]]:
    """What is wrong with the losses for these models, as (path below `distill`, sentence). `likeliest`: tokens of which
    the teacher's logits are read.
    """
    if likeliest is not None and not ENGINES[engine].learns_of_likeliest:
        yield "teacherLogits", f"the engine {engine} does not read logits; set Live, or use another engine"
    if likeliest is not None and likeliest > teacher.vocabulary_size:
        size = teacher.vocabulary_size
        yield "cachedTopK", f"{likeliest} is more than the {size} tokens of the teacher's vocabulary; lower it"
    for index, loss in enumerate(losses):
        needs = loss.needs(teacher, student)
        if (needs.hidden or needs.embeddings) and not ENGINES[engine].gives_states:
            yield (
                f"losses[{index}].type",
                f"{loss.type} compares outputs of layers here, which the engine {engine} does not give; use losses on "
                "logits, or another engine",
            )
        for field, sentence in (
            fault for term in loss.resolved(teacher, student) for fault in term.faults(teacher, student)
        ):
            yield f"losses[{index}].{field}", sentence


__all__ = [
    "CHOSEN_BY_AUTO",
    "LOSSES",
    "OF_LIKELIEST",
    "ON_LOGITS",
    "Balance",
    "LogitsKL",
    "LossConfig",
    "LossField",
    "Needs",
    "describe_losses",
    "is_balanced",
    "is_clear",
    "loss_faults",
    "losses_in_words",
    "resolved_losses",
    "twice",
]
