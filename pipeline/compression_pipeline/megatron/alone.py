"""Work of rank 0 alone, for which the other ranks wait: however long it takes, no collective of theirs times out."""

import time
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from compression_pipeline.context import Context
from compression_pipeline.errors import Interrupted, PhaseError
from compression_pipeline.faults import classify

from .runtime import Runtime

Value = TypeVar("Value")

PAUSE = 1.0
"""Seconds between two signs of life of rank 0."""


def on_rank_0(work: Callable[[Callable[[], None]], Value], runtime: Runtime, context: Context) -> Value:
    """See `engines.Engine.on_rank_0`."""
    told: list[tuple[Value | None, PhaseError | None]] = [(None, None)]
    if runtime.rank == 0:
        told = [_done(work, runtime, context)]
        _meet(runtime, context, done=True)
    else:
        while not _meet(runtime, context, done=False)[1]:
            pass
    dist.broadcast_object_list(told, src=0)
    value, fault = told[0]
    if fault is not None:
        raise fault
    return cast("Value", value)


def _done(
    work: Callable[[Callable[[], None]], Value], runtime: Runtime, context: Context
) -> tuple[Value | None, PhaseError | None]:
    met, alone = time.monotonic(), False

    def tick() -> None:
        nonlocal met, alone
        if time.monotonic() - met < PAUSE and not context.stop_requested():
            return
        alone = True
        stopped, _ = _meet(runtime, context, done=False)
        met, alone = time.monotonic(), False
        if stopped:
            raise Interrupted("was told to stop (SIGTERM)")

    try:
        return work(tick), None
    except Exception as error:  # whatever it is, the other ranks would wait
        if alone:  # a peer died: nobody is left to meet
            raise
        return None, classify(error)


def _meet(runtime: Runtime, context: Context, *, done: bool) -> tuple[bool, bool]:
    """Whether any rank was told to stop, and whether rank 0 is done."""
    shared = torch.tensor([float(context.stop_requested()), float(done)], device=runtime.device)
    dist.all_reduce(shared)
    stops, ends = shared.tolist()
    return stops > 0, ends > 0
