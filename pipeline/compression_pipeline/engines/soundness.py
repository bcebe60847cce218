"""What is said of a model that computes no numbers."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from compression_pipeline.config import Precision
from compression_pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def check_sound(
    tensors: "Callable[[], Iterable[tuple[str, Tensor]]]", value: float, *, whose: str, what: str, precision: Precision
) -> None:
    """Refuse a model, untouched so far, whose `what` came out as a `value` that isn't finite.

    `tensors`: its weights by Hugging Face's names, which are looked through only then. Raises UserError that says whose
    it is, and which tensor is to blame if one is.
    """
    if math.isfinite(value):
        return
    broken = [name for name, tensor in tensors() if not bool(tensor.isfinite().all())]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(
            f"{whose} computes {value}: {what} is {value}, for its tensor {broken[0]}{more} holds values that are not "
            "finite; download the checkpoint again, or make it again"
        )
    raise UserError(
        f"{whose} computes {value}: {what} is {value} though all of its weights are finite, so it overflows in "
        f"{precision.value}; "
        + ("set precision: FP32" if precision is Precision.BF16 else "look whether the checkpoint is damaged")
    )
