"""Starting a job's first process: forked where that can be, which spares it its imports, else as any program."""

import asyncio
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


class Starter:
    """Use it within one event loop, and `close` it once no job runs."""

    def __init__(self, command: Sequence[str], *, fork: bool) -> None:
        """`command`: a phase is appended to it. `fork`: whether the jobs may be forked, which then are what `command`
        would start.
        """
        self._command = command
        self._forkserver = ForkServer() if fork else None

    async def start(
        self, phase: Phase, environment: Mapping[str, str], log: IO[bytes], *, ranks: int, gpus: Sequence[str]
    ) -> Child:
        """Start a job that writes to `log`, and ends when its standard input does. Raises OSError."""
        if self._forkserver is not None and ranks == 1 and not gpus and not PHASES[phase].reads_sources:
            forked = await self._forkserver.fork(phase, environment, log)
            if forked is not None:
                return forked
        return await asyncio.create_subprocess_exec(
            *self._command,
            phase.value,
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for this process alone
        )

    async def close(self) -> None:
        """Leave no process behind."""
        if self._forkserver is not None:
            await self._forkserver.close()
