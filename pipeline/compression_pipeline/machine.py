"""What the machine offers a job, and what it does to it: ports, out-of-memory kills, dying together."""

import ctypes
import os
import signal
import socket
import sys
from contextlib import suppress

from .store.system import CGROUP, PROC, boot_id

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def oom_kills() -> int:
    """Processes of this container that the kernel has killed for memory so far; 0 where it doesn't tell."""
    for file in ("memory.events", "memory/memory.oom_control"):
        with suppress(OSError, ValueError):
            for line in (CGROUP / file).read_text().splitlines():
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
    for file in (PROC / "self/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in file.read_text().split()]
    return found


def machine_id() -> str:
    """Name of the space in which a process id means something: host, boot, pid namespace."""
    space = ""
    with suppress(OSError):
        space = str((PROC / "self/ns/pid").readlink())
    return f"{socket.gethostname()} {boot_id()} {space}".strip()


def _prctl(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0
