"""The most memory that some work takes, of tensors alone."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_of(work: Callable[[], object], device: torch.device | None = None) -> int:
    """Most bytes of tensors, and of what operations need meanwhile, that were there at once while `work` ran, beyond
    those that were there before. `device`: a CPU if not given.
    """
    gc.collect()  # what went before would be given back meanwhile
    if device is not None and device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    current = most = 0
    profiler: Any = recorded.profiler
    for event in sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            current += event.nbytes()
            most = max(most, current)
    return most
