"""Activations that the backward pass computes again instead of keeping them (arXiv 2205.05198, section 5).

By torch's checkpointing around single modules: hooks outside of them see tensors of the graph, which Megatron's own
recomputation, around groups of layers, hides from them. What is computed again is what was computed, so the result is
the same to the bit.
"""

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from compression_pipeline.config import Recomputation


def recompute(model: Any, what: Recomputation) -> None:
    """Have a GPTModel that is about to be trained keep less, in place; `what` is not Auto.

    There is no dropout, so random states are not put back.
    """
    for layer in model.decoder.layers:
        match what:
            case Recomputation.FULL:
                _again(layer)
            case Recomputation.SELECTIVE:
                _again(layer.mlp)
            case _:
                pass


def _again(module: Any) -> None:
    module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)
