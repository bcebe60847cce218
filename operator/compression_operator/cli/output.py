"""Output that may break: a run goes on without whoever read it."""

import contextlib
import os
import sys
from collections.abc import Generator
from typing import Any, TextIO, cast


class _Unheard:
    """A stream to which writing never fails. What cannot be written is lost, or written later by what holds it back."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def ignore_closed_pipe() -> Generator[None]:
    """Let the command go on to its end, and exit by its result, where nobody reads stdout or stderr any more
    (`compression run ... | head`) or there is no room for what it says: hours of training don't end for that.
    """
    streams = (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = (cast(TextIO, _Unheard(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in streams:
            _empty(stream)


def _empty(stream: TextIO) -> None:
    """Flush the stream, into nothing if need be: Python would flush it at its end, complain, and exit with 120."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
