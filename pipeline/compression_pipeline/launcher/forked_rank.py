"""A rank that is forked of its launcher, and told and waited for as one that was started by `subprocess`."""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NoReturn

from compression_pipeline.config import Phase

_RESET = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
"""Signals that the launcher has handlers for, which are not the rank's."""


class ForkedRank:
    """The process of one rank: the part of `subprocess.Popen` that the launcher uses."""

    def __init__(self, phase: Phase, environment: Mapping[str, str]) -> None:
        """Forks it. Raises OSError where there can be no more processes."""
        sys.stdout.flush()
        sys.stderr.flush()
        self.returncode: int | None = None
        # A signal that came before the child has set the handlers back would only be noted in its copy of the launcher.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _RESET)
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _become_rank(phase, environment, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with suppress(ProcessLookupError, PermissionError):  # the child does it, too, whichever comes first
            os.setpgid(self.pid, self.pid)

    def poll(self) -> int | None:
        """The exit code (negative: signal) once it has ended."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """The exit code, which is waited for."""
        while (code := self._wait(0)) is None:
            pass
        return code

    def send_signal(self, number: int) -> None:
        """Nothing happens where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _become_rank(phase: Phase, environment: Mapping[str, str], mask: Iterable[int]) -> NoReturn:
    """What `subprocess` and Python's start would have done, then the rank's work. `mask`: signals to be blocked."""
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with open(os.devnull, "rb") as null:  # noqa: PTH123 (a descriptor is wanted)
            os.dup2(null.fileno(), 0)
        os.environ.clear()
        os.environ.update(environment)
        if torch := sys.modules.get("torch"):  # imported under another OMP_NUM_THREADS
            torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        importlib.import_module("compression_pipeline.worker").work([phase.value])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)  # `work` does not return
