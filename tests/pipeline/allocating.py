"""What torch's allocator is asked for, to the byte."""

import gc
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes of tensors, and of what operations need meanwhile, that were there at once while `work` ran, beyond
    those that were there before.
    """
    gc.collect()  # what went before would be given back meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    current = most = 0
    profiler: Any = recorded.profiler
    for event in sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            current += event.nbytes()
            most = max(most, current)
    return most
