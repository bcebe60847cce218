"""What the machine offers a job, and what it does to it: processors, ports, out-of-memory kills, dying together."""

import ctypes
import math
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CGROUP = Path("/sys/fs/cgroup")


def processors() -> int:
    """Processors that this process may use: its affinity, cut to the container's CPU limit. At least 1."""
    try:
        mine = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        mine = os.cpu_count() or 1
    limit = _cpu_limit()
    return max(1, mine if limit is None else min(mine, math.ceil(limit)))


def _cpu_limit() -> float | None:
    with suppress(OSError, ValueError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):  # cgroup v1
        quota = int((_CGROUP / "cpu/cpu.cfs_quota_us").read_text())
        return quota / int((_CGROUP / "cpu/cpu.cfs_period_us").read_text()) if quota > 0 else None
    return None


def oom_kills() -> int:
    """Processes of this container that the kernel has killed for memory so far; 0 where it doesn't tell."""
    for file in ("memory.events", "memory/memory.oom_control"):
        with suppress(OSError, ValueError):
            for line in (_CGROUP / file).read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return 0


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def die_with_parent(parent: int | None = None) -> None:
    """Let the kernel kill this process when its parent ends (Linux), so that a `kill -9` leaves no orphans.

    `parent`: the process it belongs to; where that is gone already this process ends at once.
    """
    if not _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        return
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux), so that none can be lost."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """Processes whose parent this process is (Linux; nothing elsewhere)."""
    found: list[int] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in file.read_text().split()]
    return found


def process_start(pid: int) -> str | None:
    """When a process started, as the kernel counts (with the pid it names one process); None where there is none."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = status[status.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else fields[19]


def machine_id() -> str:
    """Name of the space in which a process id means something: host, boot, pid namespace."""
    boot, space = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()} {boot} {space}".strip()


def _prctl(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0
