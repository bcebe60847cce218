"""The arithmetic that the key of a step counts on where no setting of the step says it."""

import os
from collections.abc import Mapping

import torch

from compression_pipeline.config import PRECISION_VARIABLE, Phase, Precision
from compression_pipeline.errors import UserError


def planned_precision(phase: Phase, environment: Mapping[str, str] = os.environ) -> Precision:
    """What the operator planned for a job of the phase; Auto where nobody told, as an older operator doesn't.

    Raises UserError where it is that of a GPU, which the phase asks for then, and none can be used.
    """
    told = environment.get(PRECISION_VARIABLE, Precision.AUTO)
    precision = Precision(told) if told in set(Precision) else Precision.AUTO
    if precision is Precision.BF16 and not torch.cuda.is_available():
        raise UserError(
            f"{phase} is planned with a GPU, whose arithmetic its key counts on, and none can be used here: look why "
            "(the node's driver, CUDA_VISIBLE_DEVICES, the CUDA of the image's torch), or set "
            f"phases.{phase}.gpusPerNode: 0"
        )
    return precision
