"""The fork server of a local run: its jobs begin with everything imported (see `compression_pipeline.launcher`)."""

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Mapping
from typing import IO

from compression_pipeline.config import TERMINATION_VARIABLE, Phase, forking

from . import processes
from .processes import ProcessId

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""How often a process is looked at whose parent, the server, is gone."""


class Stdin:
    """The writing end of a job's standard input, whose end tells the job that this process is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Let the job read the end of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class ForkedJob:
    """The first process of a job that the server forked: what the backend uses of `asyncio.subprocess.Process`."""

    def __init__(self, pid: int, stdin: Stdin, code: asyncio.Future[int | None]) -> None:
        """`code`: its exit code (negative: the signal) once it has ended; None where the server ended before it."""
        self.pid = pid
        self.stdin = stdin
        self._process = ProcessId.of(pid)
        self._code = code

    async def wait(self) -> int | None:
        """Its exit code, once it has ended; None where nobody is left to tell."""
        code = await self._code
        while code is None and self._process is not None and self._process.alive:
            await asyncio.sleep(LOOK_SECONDS)
        self.stdin.close()
        return code

    def terminate(self) -> None:
        """SIGTERM."""
        if self._process is not None:
            processes.terminate(self._process)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            processes.kill(self._process)


class ForkServer:
    """Starts the server when it is first needed. Use it within one event loop, and `close` it at the end."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._server: asyncio.subprocess.Process | None = None
        self._requests: socket.socket | None = None
        self._started: asyncio.Queue[tuple[int, asyncio.Future[int | None]] | None] = asyncio.Queue()
        self._codes: dict[int, asyncio.Future[int | None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._gone = sys.platform != "linux"

    async def fork(self, phase: Phase, environment: Mapping[str, str], log: IO[bytes]) -> ForkedJob | None:
        """Start a job of one rank without a GPU; None where it must be started as any other program.

        Returns once the job's libraries are imported: seconds for the first of a kind, then none.
        """
        if len(environment[TERMINATION_VARIABLE].encode()) > forking.ROOM:
            return None
        async with self._lock:
            try:
                return None if self._gone else await self._fork(phase, environment, log)
            except OSError as error:
                logger.debug("the fork server cannot be used: %s", error)
                self._gone = True
                return None

    async def close(self) -> None:
        """Let the server end, after its jobs."""
        self._gone = True
        if self._requests is not None:
            self._requests.close()
        if self._server is not None and self._reading is not None:
            await self._reading
            await self._server.wait()

    async def _fork(self, phase: Phase, environment: Mapping[str, str], log: IO[bytes]) -> ForkedJob | None:
        requests = self._requests or await self._start(environment)
        request = forking.Request(phase=phase.value, environment=dict(environment))
        reader, writer = os.pipe()
        stdin = Stdin(writer)
        file = os.memfd_create("job")
        try:
            os.write(file, json.dumps(request).encode())
            socket.send_fds(requests, [forking.REQUEST], [file, reader, log.fileno()])
        except OSError:
            stdin.close()
            raise
        finally:
            os.close(reader)
            os.close(file)
        started = await self._started.get()
        if started is None:
            stdin.close()
            self._gone = True
            return None
        return ForkedJob(started[0], stdin, started[1])

    async def _start(self, environment: Mapping[str, str]) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._server = await asyncio.create_subprocess_exec(
                *forking.COMMAND,
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=forking.environment(environment),
                start_new_session=True,  # Ctrl-C in the terminal is for this process alone
            )
        self._requests = ours
        self._reading = asyncio.create_task(self._read(self._server), name="fork server")
        return ours

    async def _read(self, server: asyncio.subprocess.Process) -> None:
        while server.stdout is not None and (line := await server.stdout.readline()):
            match json.loads(line):
                case {"pid": pid, "code": code}:
                    self._codes.pop(pid).set_result(code)
                case {"pid": pid}:
                    self._codes[pid] = asyncio.get_running_loop().create_future()
                    self._started.put_nowait((pid, self._codes[pid]))
                case refused:
                    logger.debug("the fork server starts no job: %s", refused)
                    self._started.put_nowait(None)
        self._gone = True
        self._started.put_nowait(None)
        for code in self._codes.values():
            code.set_result(None)
        self._codes.clear()
