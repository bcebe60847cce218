"""What a student is trained to match: the torch half of each of `config.losses.LOSSES`, one file per loss."""

from importlib import import_module

from compression_pipeline.config import Architecture, LossConfig

from .base import Loss, Signals
from .heads import Head, Heads
from .weighted import dynamic_factor, is_dynamic, token_share, token_weights, weighted_sum


def build_loss(config: LossConfig, teacher: Architecture, student: Architecture) -> Loss:
    """The loss of these settings, for models of these sizes."""
    module, _, name = config.implementation.partition(":")
    return getattr(import_module(module), name)(config, teacher, student)


__all__ = [
    "Head",
    "Heads",
    "Loss",
    "Signals",
    "build_loss",
    "dynamic_factor",
    "is_dynamic",
    "token_share",
    "token_weights",
    "weighted_sum",
]
