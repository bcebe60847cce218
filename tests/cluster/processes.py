"""Processes told apart by process id *and* start time, so that a reused id is never mistaken for ours."""

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """A process as the kernel knows it; `started` is in clock ticks since boot (field 22 of /proc/PID/stat)."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """The identity of a living process, or None (also for a zombie)."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The name, in parentheses, may hold anything: count the fields after it.
        state, *fields = stat.rpartition(")")[2].split()
        if state in "ZX":
            return None
        return cls(pid, int(fields[18]), Path("/proc/sys/kernel/random/boot_id").read_text().strip())

    @classmethod
    def read(cls, path: Path) -> "Identity | None":
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    def alive(self) -> bool:
        return Identity.of(self.pid) == self

    def signal(self, number: int) -> None:
        """Send a signal, unless the process is gone (a file descriptor of the process rules out a reused id)."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                _send(handle, number)
        finally:
            os.close(handle)

    def wait_until_gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def _send(handle: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return


def write_json(path: Path, value: object) -> None:
    """Write a whole file or nothing: a reader never sees half of it."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(json.dumps(value, indent=1))
    draft.rename(path)
