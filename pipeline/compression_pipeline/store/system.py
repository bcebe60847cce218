"""What the kernel tells of processors and processes. No torch: the operator's local runs read it, too."""

import math
import os
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def processors() -> int:
    """Processors that this process may use: its affinity, cut to the container's CPU limit, rounded up. At least 1."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _cpu_limit()
    return max(1, mine if limit is None else min(mine, math.ceil(limit)))


def process_start(pid: int) -> str | None:
    """When a process started, as the kernel counts (with boot and pid it names one process); None where there is none,
    or it has ended and only awaits its parent.
    """
    fields = stat_of(pid)
    return None if fields is None or fields[0] in "ZX" else fields[19]


def stat_of(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third one on; None where there is no such process."""
    try:
        # The second field is the command in parentheses, which may itself hold spaces and parentheses.
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def boot_id() -> str:
    """Name of the time since this machine started; empty where it does not tell."""
    with suppress(OSError):
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return ""


def _cpu_limit() -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):  # cgroup v1
        quota = int((CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        return quota / int((CGROUP / "cpu/cpu.cfs_period_us").read_text()) if quota > 0 else None
    return None
