"""Processes told apart for good: a pid alone may be another process tomorrow, a pid with its start time may not."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from compression_pipeline.store import system

EXEC_LOOKS, EXEC_SECONDS = 100, 2.0
"""How often, and for how long at most, a process is looked at that the kernel puts a new program in."""

KERNEL_THREAD = 0x0020_0000
"""PF_KTHREAD of the kernel's sched.h: such a process never has an environment."""


@dataclass(frozen=True)
class ProcessId:
    """A process for good: its pid, and when it started (in the system's own words)."""

    pid: int
    start: str

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        """The process that has `pid` now; None where none has it, or it has ended and only awaits its parent."""
        start = _start(pid)
        return None if start is None else cls(pid, start)

    @property
    def alive(self) -> bool:
        """Whether that very process still runs."""
        return _start(self.pid) == self.start


def marked(mark: str) -> list[ProcessId]:
    """Every running process whose environment holds `mark` (`NAME=value`), wherever it has moved since it started.

    Children inherit their environment, so this finds a job's processes even in sessions of their own (torchrun starts
    each rank in a new one). Empty where the system does not tell environments (no /proc).
    """
    wanted = mark.encode()
    found: list[ProcessId] = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if wanted in _environment(pid).split(b"\0"):
                process = ProcessId.of(pid)
                if process is not None:
                    found.append(process)
    return found


def terminate(process: ProcessId) -> None:
    """Ask this process to end (SIGTERM); nothing happens where it already has."""
    _send(process, signal.SIGTERM)


def kill(process: ProcessId) -> None:
    """End this process at once (SIGKILL)."""
    _send(process, signal.SIGKILL)


def kill_group(process: ProcessId) -> None:
    """End at once everything in the process group that this process leads."""
    if process.alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _send(process: ProcessId, number: signal.Signals) -> None:
    if process.alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def _environment(pid: int) -> bytes:
    """As /proc tells it. That of a process in the midst of `exec` reads as empty, which is waited out: a job's child
    would be overlooked, and outlive it. Raises OSError.
    """
    for _ in range(EXEC_LOOKS):
        found = (system.PROC / str(pid) / "environ").read_bytes()
        if found or not _in_exec(pid):
            return found
        time.sleep(EXEC_SECONDS / EXEC_LOOKS)
    return b""


def _in_exec(pid: int) -> bool:
    fields = system.stat_of(pid)
    if fields is None:
        return False
    state, flags, environment_end = fields[0], int(fields[6]), fields[48]
    return state not in "ZX" and not flags & KERNEL_THREAD and environment_end == "0"


def _pids() -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):
        yield from (int(entry.name) for entry in system.PROC.iterdir() if entry.name.isdigit())


def _start(pid: int) -> str | None:
    if system.PROC.joinpath("self", "stat").exists():
        start = system.process_start(pid)
        return None if start is None else f"{system.boot_id()}/{start}"
    # macOS and the BSDs: ps knows; a zombie's state starts with Z.
    asked = subprocess.run(  # noqa: S603 - fixed arguments and a number
        ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, start = asked.stdout.strip().partition(" ")
    return start.strip() if asked.returncode == 0 and state and not state.startswith("Z") else None
