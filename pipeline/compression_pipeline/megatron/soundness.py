"""What is said of a model that computes no numbers."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression_pipeline.config import Architecture
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.conversion import to_huggingface

from .runtime import Runtime


def check_sound(
    model: nn.Module | Mapping[str, Tensor],
    architecture: Architecture,
    value: float,
    *,
    whose: str,
    what: str,
    runtime: Runtime,
) -> None:
    """Refuse a model, untouched so far, whose `what` came out as a `value` that isn't finite.

    Raises UserError that says whose it is, and which tensor is to blame if one is.
    """
    if math.isfinite(value):
        return
    parameters = dict(model.named_parameters()) if isinstance(model, nn.Module) else dict(model)
    broken = not_finite(parameters, architecture)
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(
            f"{whose} computes {value}: {what} is {value}, for its tensor {broken[0]}{more} holds values that are not "
            "finite; get the checkpoint anew, or make it again"
        )
    raise UserError(
        f"{whose} computes {value}: {what} is {value} though all of its weights are finite, so it overflows in "
        f"{runtime.precision.value}; "
        + ("set precision: FP32" if runtime.dtype is torch.bfloat16 else "look whether the checkpoint is damaged")
    )


def not_finite(parameters: Mapping[str, Tensor], architecture: Architecture) -> list[str]:
    """The tensors with values that aren't finite, by Hugging Face's names."""
    found = to_huggingface(architecture, lambda name: parameters[name].detach())
    return [name for name, tensor in found if not bool(tensor.isfinite().all())]
