"""The operator's process: how it ends, and the wiring of kopf: what that is told to keep of what it watches."""

import asyncio
import itertools
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import kopf
import pytest

from compression_operator.cluster.health import MISSED_SECONDS
from compression_operator.cluster.process import operate
from compression_operator.cluster.resync import selector_of
from compression_operator.kube.client import RUNS, Resource
from compression_operator.kube.watching.kopf_run import Retries, settings_for


class Part(dict[str, Any]):
    """A part of an object that nobody may copy."""

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise AssertionError("a part of the object was copied")


def test_nothing_of_an_object_is_copied_to_tell_later_what_changed() -> None:
    # kopf asks these for every event, though raw handlers have no use for the answer (processing.py, _detect_causes).
    kept = settings_for((), selector_of).persistence
    meta = Part(name="a", namespace="default", labels=Part(a="b"), annotations=Part(c="d"))
    raw: Any = {"metadata": meta, "spec": Part(replicas=1), "status": Part(phase="Running")}
    body = kopf.Body(raw)
    essence = kept.diffbase_storage.build(body=body, extra_fields=["status.phase"])
    assert kept.diffbase_storage.fetch(body=body) is None
    assert not kept.progress_storage.clear(essence=essence)


class Idle:
    """In the place of the service: nothing to do until somebody has come to the API server, or has died on the way."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._died = asyncio.Event()
        self.resources_returned = asyncio.Event()
        self.problems: list[str | None] = []

    async def run(self) -> None:
        come = asyncio.create_task(asyncio.get_running_loop().sock_accept(self._server))
        died = asyncio.create_task(self._died.wait())
        await asyncio.wait((come, died), return_when=asyncio.FIRST_COMPLETED)
        if come.done():
            come.result()[0].close()

    def note_event(self, *_: object) -> None:
        pass

    def watched(self) -> dict[str | None, list[Resource]]:
        return {"default": [RUNS]}

    def note_watching(self, problem: str | None) -> None:
        self.problems.append(problem)
        self._died.set()

    def stop(self) -> None:
        pass


def test_the_user_it_runs_as_needs_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the cluster chooses the user id: no passwd file knows it, and no variable tells a name."""

    def unknown(uid: int) -> NoReturn:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, server.getsockname()[1])))
        idle: Any = Idle(server)
        asyncio.run(operate(idle, ("default",)))
    assert not idle.problems


def kubeconfig(folder: Path, port: int = 1) -> Path:
    """Of a cluster that is not there, or of what listens on the port."""
    config = folder / "config"
    context = {"name": "x", "context": {"cluster": "x", "user": "x"}}
    body = {
        "clusters": [{"name": "x", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [context],
        "users": [{"name": "x", "user": {"token": "t"}}],
        "current-context": "x",
    }
    config.write_text(json.dumps(body))
    return config


def test_a_watch_that_is_refused_is_tried_again_for_ever() -> None:
    """kopf gives up when its pauses are used up, and takes the watches of all other namespaces with it."""
    pauses = settings_for((), selector_of).networking.error_backoffs
    assert isinstance(pauses, Retries) and max(itertools.islice(iter(pauses), 10_000)) < MISSED_SECONDS


def last_words(
    kubeconfig: Path, *arguments: str, start: Sequence[str] = ("-m", "compression_operator")
) -> list[dict[str, Any]]:
    """The lines of the log of an operator that ends at once."""
    command = [sys.executable, *start, "--image", "x", "--log-format", "json", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "KUBERNETES_SERVICE_HOST"}
    ended = subprocess.run(
        command, env=environment | {"KUBECONFIG": str(kubeconfig)}, capture_output=True, text=True, timeout=540
    )
    assert ended.returncode == 1 and not ended.stdout
    return [json.loads(line) for line in ended.stderr.splitlines()]


def test_the_last_words_of_a_process_are_in_the_format_of_its_log(tmp_path: Path) -> None:
    last = last_words(tmp_path / "none")[-1]
    assert last["level"] == "error" and "Set KUBECONFIG, or run in a pod" in last["message"]


def test_so_are_those_of_one_that_ends_for_what_nobody_expected(tmp_path: Path) -> None:
    config = kubeconfig(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = last_words(config, "--host", "127.0.0.1", "--port", str(port))
    [last] = [line for line in said if line["level"] == "critical"]
    assert "address already in use" in last["traceback"]


def test_so_is_what_could_be_raised_nowhere() -> None:
    program = """
import asyncio, gc
from compression_operator.cluster.log_format import configure
configure("json", "info")
class Broken:
    def __del__(self):
        raise ValueError("nobody catches this")
Broken()
async def left():
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)  # no loop runs any more
loop = asyncio.new_event_loop()
loop.set_exception_handler(lambda *_: None)
task = loop.create_task(left())
loop.run_until_complete(asyncio.sleep(0))
loop.close()
del task, loop
gc.collect()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=540)
    [line] = [json.loads(line) for line in ended.stderr.splitlines()]
    assert line["level"] == "warning" and "__del__" in line["message"] and "nobody catches this" in line["traceback"]


def test_a_watch_that_does_not_leave_its_thread_cannot_break_the_end_of_the_process(tmp_path: Path) -> None:
    """It was under way while Python took itself down: exit code 139, or a line of the C library's."""
    program = """
import atexit, sys, time
from compression_operator import __main__
from compression_operator.cluster import process
async def stays(*_):
    time.sleep(600)
process.watch_all = stays
atexit.register(print, "Python's own end")
__main__.leave(__main__.main(sys.argv[1:]))
"""
    config = kubeconfig(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = ["--host", "127.0.0.1", "--port", str(taken.getsockname()[1])]
        said = last_words(config, *where, start=("-c", program))
    assert "address already in use" in said[-1]["traceback"]
