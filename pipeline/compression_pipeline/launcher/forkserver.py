"""Jobs that begin with everything imported: a process that imports once what phases need, and is forked for each job.

`python -m compression_pipeline.launcher.forkserver`: for jobs of one rank without a GPU (CUDA does not survive a fork),
on Linux. Standard input is a Unix socket: for each job one byte and three descriptors, of a file with the `Request`, of
the job's standard input, and of its log. Standard output has a `Reply` a line. The server ends when its standard input
does; its jobs have their own.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from compression_pipeline.config import CONFIG_VARIABLE, PHASES, TERMINATION_VARIABLE, EngineJob, Phase
from compression_pipeline.config.forking import ROOM, Reply, Request
from compression_pipeline.store.system import PROC

from .main import main as launch


def preload(phase: Phase, config: str) -> None:
    """Import what the phase's ranks import: its program, its engine's libraries, and what the program imports late,
    if it has a function `preload(job)` for that.

    What cannot be imported here cannot be imported by the job, whose log then says why.
    """
    with contextlib.suppress(BaseException):
        job = PHASES[phase].job.model_validate_json(config)
        program = importlib.import_module(f"compression_pipeline.phases.{PHASES[phase].program.value}")
        if isinstance(job, EngineJob):
            importlib.import_module("compression_pipeline.engines").preload(job)
        if hasattr(program, "preload"):
            program.preload(job)
    gc.freeze()  # a collection in a job would touch, and so copy, every object that it shares with the server


class _Server:
    def __init__(self) -> None:
        self._requests = socket.socket(fileno=os.dup(0))
        self._replies = os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        self._woken, self._waker = os.pipe()
        for end in (self._woken, self._waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # so that it wakes us
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._mark = _Mark()

    def serve(self) -> None:
        """Until nobody asks any more."""
        while True:
            ready, _, _ = select.select([self._requests, self._woken], [], [])
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._requests in ready:
                asked, descriptors, _, _ = socket.recv_fds(self._requests, 1, 3)
                if not asked:
                    return
                self._answer(*descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)

    def _answer(self, file: int, stdin: int, log: int) -> None:
        request: Request = json.loads(os.pread(file, os.fstat(file).st_size, 0))
        preload(Phase(request["phase"]), request["environment"][CONFIG_VARIABLE])
        if (threads := len(list((PROC / "self/task").iterdir()))) > 1:
            # Only the thread that forks goes on in the child, and whatever lock another one held stays locked.
            self._reply({"refused": f"{threads} threads run"})
            return
        try:
            pid = os.fork()
        except OSError as error:  # no more processes, or no memory
            self._reply({"refused": str(error)})
            return
        if pid == 0:
            os.close(file)
            self._become_job(request, stdin, log)
        self._reply({"pid": pid})

    def _become_job(self, request: Request, stdin: int, log: int) -> NoReturn:
        code = 1
        try:
            os.setsid()  # as a job that is started by itself: Ctrl-C in a terminal is not for it
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            for target, source in enumerate((stdin, log, log)):
                os.dup2(source, target)
            self._requests.close()
            for descriptor in (stdin, log, self._replies, self._woken, self._waker):
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(request["environment"])
            self._mark.write(request["environment"][TERMINATION_VARIABLE])
            code = launch([request["phase"]], fork=True)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._reply({"pid": ended[0], "code": os.waitstatus_to_exitcode(ended[1])})

    def _reply(self, reply: Reply) -> None:
        os.write(self._replies, json.dumps(reply).encode() + b"\n")


class _Mark:
    """The variable by which a job's processes are told, where the kernel shows it: in the memory that the server was
    started with. What Python sets in `os.environ` lies elsewhere.
    """

    def __init__(self) -> None:
        getenv = ctypes.CDLL(None).getenv
        getenv.argtypes, getenv.restype = [ctypes.c_char_p], ctypes.c_void_p
        self._address: Any = getenv(TERMINATION_VARIABLE.encode())

    def write(self, value: str) -> None:
        content = value.encode()
        if len(content) > ROOM:
            raise ValueError(f"{TERMINATION_VARIABLE} has more than {ROOM} bytes")
        ctypes.memmove(self._address, content.ljust(ROOM, b"\0"), ROOM)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # who asked is gone
        _Server().serve()
