"""Starting a job's first process: forked where that can be, which spares it its imports, else as any program."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import IO, Protocol

from compression_pipeline.config import PHASES, Phase

from .forkserver import ForkServer


class Stdin(Protocol):
    """The writing end of a standard input."""

    def close(self) -> None:
        """Let the reader read its end."""


class Child(Protocol):
    """The first process of a job, as `asyncio.subprocess.Process` has it."""

    @property
    def pid(self) -> int: ...
    @property
    def stdin(self) -> Stdin | None: ...
    async def wait(self) -> int | None:
        """The exit code (negative: the signal), once it has ended; None where nobody is left to tell."""
        ...

    def terminate(self) -> None:
        """SIGTERM. May raise ProcessLookupError."""

    def kill(self) -> None:
        """SIGKILL. May raise ProcessLookupError."""


def release(child: Child) -> None:
    """Let the job end at a checkpoint, as it would if this process were gone."""
    if child.stdin is not None:
        child.stdin.close()


def kill(child: Child) -> None:
    """SIGKILL, unless it has ended."""
    with contextlib.suppress(ProcessLookupError):
        child.kill()


class Starter:
    """Use it within one event loop, and `close` it once no job runs."""

    def __init__(self, command: Sequence[str], *, fork: bool) -> None:
        """`command`: a phase is appended to it. `fork`: whether the jobs may be forked, which then are what `command`
        would start.
        """
        self._command = command
        self._forkserver = ForkServer() if fork else None
        self._killed = False

    @property
    def imports_first(self) -> bool:
        """Whether a start may take as long as the imports of libraries."""
        return self._forkserver is not None

    async def start(
        self, phase: Phase, environment: Mapping[str, str], log: IO[bytes], *, ranks: int, gpus: Sequence[str]
    ) -> Child | None:
        """Start a job that writes to `log` and ends when its standard input does; None after `kill`. Raises OSError."""
        if self._forkserver is not None and ranks == 1 and not gpus and not PHASES[phase].reads_sources:
            forked = await self._forkserver.fork(phase, environment, log)
            if forked is not None:
                return forked
        if self._killed:
            return None
        return await asyncio.create_subprocess_exec(
            *self._command,
            phase.value,
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for this process alone
        )

    def kill(self) -> None:
        """Start no more, and nothing that waits for its libraries to be imported."""
        self._killed = True
        if self._forkserver is not None:
            self._forkserver.kill()

    async def close(self) -> None:
        """Leave no process behind."""
        if self._forkserver is not None:
            await self._forkserver.close()
