"""Figures of a step that its next attempts need not measure again."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from compression_pipeline.context import Context

from .runtime import Runtime


def remembered(
    context: Context, fingerprint: str, runtime: Runtime, name: str, measured_on: Any, measure: Callable[[], float]
) -> float:
    """The figure `name` of the step, as an attempt has measured it, or measured now; every rank calls it.

    `measured_on`: what it depends on beside the fingerprint, for JSON; measured on something else it is another figure.
    """
    told: list[float | None] = [None]
    if runtime.rank == 0:
        attempts = context.store.earlier_attempts(fingerprint)
        found = (_read(folder / f"{name}.json", measured_on) for folder in attempts)
        told[0] = next((value for value in found if value is not None), None)
    dist.broadcast_object_list(told, src=0)
    if told[0] is not None:
        return told[0]
    value = measure()
    if runtime.rank == 0 and math.isfinite(value):
        (context.folder / f"{name}.json").write_text(json.dumps({"measuredOn": measured_on, "value": value}))
    return value


def _read(path: Path, measured_on: Any) -> float | None:
    try:
        content = json.loads(path.read_text())
        value = float(content["value"])
        return value if content["measuredOn"] == measured_on and math.isfinite(value) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
