"""What a student is trained to match: the torch half of each of `config.losses.LOSSES`, one file per loss."""

from collections.abc import Iterator, Sequence
from importlib import import_module

from compression_pipeline.config import Architecture, LossConfig

from .base import Loss, Signals
from .heads import Head, Heads
from .weighted import dynamic_factor, is_dynamic, token_share, token_weights, weighted_sum
from .words import Words


def build_loss(config: LossConfig, teacher: Architecture, student: Architecture) -> Loss:
    """The loss of these settings, for models of these sizes."""
    return _implementation(config)(config, teacher, student)


def tensor_faults(losses: Sequence[LossConfig], teacher: Architecture, student: Architecture) -> Iterator[str]:
    """What of these losses cannot be computed where ranks share matrices: sentences that name it and the fix."""
    for loss in losses:
        needs = loss.needs(teacher, student)
        if (needs.logits or needs.labels) and not _implementation(loss).splits_vocabulary:
            yield f"distill.losses: {loss.type} needs the logits of all words on one rank; set parallelism.tensor to 1"


def _implementation(config: LossConfig) -> type[Loss]:
    module, _, name = config.implementation.partition(":")
    return getattr(import_module(module), name)


__all__ = [
    "Head",
    "Heads",
    "Loss",
    "Signals",
    "Words",
    "build_loss",
    "dynamic_factor",
    "is_dynamic",
    "tensor_faults",
    "token_share",
    "token_weights",
    "weighted_sum",
]
