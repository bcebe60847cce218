"""The fork server of a local run: its jobs begin with everything imported (see `compression_pipeline.launcher`)."""

import asyncio
import json
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
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
        self._usable = sys.platform == "linux"
        self._lock = asyncio.Lock()
        self._server: asyncio.subprocess.Process | None = None
        self._requests: socket.socket | None = None
        self._asked: deque[asyncio.Future[_Started | None]] = deque()
        self._codes: dict[int, asyncio.Future[int | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def fork(self, phase: Phase, environment: Mapping[str, str], log: IO[bytes]) -> ForkedJob | None:
        """Start a job of one rank without a GPU; None where it must be started as any other program.

        Returns once the job's libraries are imported: seconds for the first of a kind, then none. Where it is cancelled
        meanwhile the job ends as soon as it is there.
        """
        if len(environment[TERMINATION_VARIABLE].encode()) > forking.ROOM:
            return None
        reader, writer = os.pipe()
        stdin = Stdin(writer)
        try:
            answer = await self._ask(phase, environment, reader, log)
        except OSError as error:
            logger.debug("the fork server cannot be used: %s", error)
            answer = None
            self._give_up()
        finally:
            os.close(reader)
        try:
            started = None if answer is None else await asyncio.shield(answer)
        except asyncio.CancelledError:
            stdin.close()
            if answer is not None:
                answer.add_done_callback(_kill)
            raise
        if started is None:
            stdin.close()
            return None
        return ForkedJob(started.pid, stdin, started.code)

    def kill(self) -> None:
        """End the server at once if a job waits for it; no more jobs are forked."""
        if self._asked and self._server is not None and self._server.returncode is None:
            self._server.kill()
        self._give_up()

    async def close(self) -> None:
        """Let the server end, after its jobs."""
        self._give_up()
        if self._server is not None and self._reading is not None:
            await self._reading
            await self._server.wait()

    def _give_up(self) -> None:
        self._usable = False
        if self._requests is not None:
            self._requests.close()  # the server ends then
            self._requests = None

    async def _ask(
        self, phase: Phase, environment: Mapping[str, str], stdin: int, log: IO[bytes]
    ) -> "asyncio.Future[_Started | None] | None":
        """Send a request; what will be answered. None where no server can be had."""
        async with self._lock:
            if self._usable and self._server is None:
                self._requests = await self._start(environment)
        if self._requests is None:
            return None
        request = forking.Request(phase=phase.value, environment=dict(environment))
        file = os.memfd_create("job")
        try:
            os.write(file, json.dumps(request).encode())
            socket.send_fds(self._requests, [forking.REQUEST], [file, stdin, log.fileno()])
        finally:
            os.close(file)
        answer: asyncio.Future[_Started | None] = asyncio.get_running_loop().create_future()
        self._asked.append(answer)
        return answer

    async def _start(self, environment: Mapping[str, str]) -> socket.socket:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._server = await asyncio.create_subprocess_exec(
                    *forking.COMMAND,
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env=forking.environment(environment),
                    start_new_session=True,  # Ctrl-C in the terminal is for this process alone
                )
        except BaseException:
            ours.close()
            raise
        self._reading = asyncio.create_task(self._read(self._server), name="fork server")
        return ours

    async def _read(self, server: asyncio.subprocess.Process) -> None:
        while server.stdout is not None and (line := await server.stdout.readline()):
            match json.loads(line):
                case {"pid": pid, "code": code}:
                    self._codes.pop(pid).set_result(code)
                case {"pid": pid}:
                    self._codes[pid] = asyncio.get_running_loop().create_future()
                    self._asked.popleft().set_result(_Started(pid, self._codes[pid]))
                case refused:
                    logger.debug("the fork server starts no job: %s", refused)
                    self._asked.popleft().set_result(None)
                    self._give_up()
        self._give_up()
        for answer in self._asked:
            answer.set_result(None)
        self._asked.clear()
        for code in self._codes.values():
            code.set_result(None)
        self._codes.clear()


@dataclass(frozen=True)
class _Started:
    pid: int
    code: asyncio.Future[int | None]


def _kill(answer: asyncio.Future[_Started | None]) -> None:
    """End a job that came when nobody waited for it any more."""
    started = answer.result()
    if started is not None and (process := ProcessId.of(started.pid)) is not None:
        processes.kill(process)
