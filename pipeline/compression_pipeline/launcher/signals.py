"""Waiting for whatever comes first: a child's end, a signal, the parent's end, the next beat."""

import os
import select
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType

EXIT_WITH_PARENT_VARIABLE = "COMPRESSION_EXIT_WITH_PARENT"


class Signals:
    """SIGTERM and SIGINT ask to stop; so does the end of stdin where the parent asked for that (it is gone then)."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.reason: str | None = None
        self._reader, writer = os.pipe()
        for end in (self._reader, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # so that it wakes us
        self._watched = [self._reader]
        if environment.get(EXIT_WITH_PARENT_VARIABLE) == "1":
            self._watched.append(sys.stdin.fileno())

    @property
    def stopping(self) -> bool:
        return self.reason is not None

    def wait(self, seconds: float) -> None:
        """Wait for a signal, a child's end or the parent's, at most `seconds`."""
        ready, _, _ = select.select(self._watched, [], [], max(0.0, seconds))
        for descriptor in ready:
            if descriptor == self._reader:
                with suppress(BlockingIOError):
                    os.read(descriptor, 4096)
            elif not os.read(descriptor, 4096):
                self._watched.remove(descriptor)
                self.reason = self.reason or "the process that started it is gone"

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or f"was told to stop ({signal.Signals(number).name})"
