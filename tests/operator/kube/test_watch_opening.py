"""What proves that the cluster is watched: kopf itself, at an HTTP server in the API server's place."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import kopf
import pytest
from http_server import Answer, Server, served
from tests.support.waiting import until_async, within
from yarl import URL

from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cluster.process import operate
from compression_operator.kube.client import PODS, RUNS, Resource
from compression_operator.kube.watching import kopf_run
from compression_operator.kube.watching.session import Openings

JSON = {"Content-Type": "application/json"}
KINDS = {RUNS: "CompressionRun", PYTORCHJOBS: "PyTorchJob", PODS: "Pod"}
NAMESPACES = Resource("", "v1", "namespaces")  # kopf waits until it knows of them


class Api:
    """Answers as an API server does in which there is no object."""

    def __init__(self, server: Server) -> None:
        server.answer = self.answer
        self.asked = server.asked
        self.known: set[Resource] = {*KINDS, NAMESPACES}  # to discovery; what is asked for is always there
        self.failing: Resource | None = None  # to be watched
        self.keys = True
        self.slow = 0.0  # seconds that a list and the answer to a watch take

    def answer(self, _: str, url: str) -> Answer:
        path, _, query = url.partition("?")
        if not self.keys:
            return 401, {"kind": "Status", "code": 401, "reason": "Unauthorized"}, JSON
        if path in ("/api", "/apis"):
            groups = [{"name": r.group, "versions": [{"version": r.version}]} for r in KINDS if r.group]
            groups = [{**group, "preferredVersion": group["versions"][0]} for group in groups]
            return 200, {"versions": [PODS.version]} if path == "/api" else {"groups": groups}, JSON
        if path in {resource.path() for resource in KINDS}:
            time.sleep(self.slow)
        if "watch=true" in query:
            if self.failing and path == self.failing.path():
                return 500, {"kind": "Status", "code": 500, "message": "etcdserver: no leader"}, JSON
            time.sleep(0.05)  # then the watch is over, and opened anew
            return 200, "", JSON
        if path in {resource.path() for resource in KINDS}:
            return 200, {"items": [], "metadata": {"resourceVersion": "5"}}, JSON
        found = [resource for resource in self.known if path == resource.path().rpartition("/")[0]]
        return 200, {"resources": [_described(resource) for resource in found]}, JSON


def _described(resource: Resource) -> dict[str, Any]:
    verbs = ["get", "list", "watch", "patch"]
    return {
        "name": resource.plural,
        "singularName": "",
        "namespaced": True,
        "kind": KINDS.get(resource, "Namespace"),
        "verbs": verbs,
    }


class Listener:
    """In the place of the service: ends once it has seen what it waits for."""

    def __init__(self, play: Callable[["Listener"], Any]) -> None:
        self.resources_returned = asyncio.Event()
        self.problems: list[str | None] = []
        self._play = play

    async def run(self) -> None:
        await within(self._play(self), "the play to be over")

    def note_event(self, *_: object) -> None:
        pass

    def watched(self) -> dict[str | None, list[Resource]]:
        return {None: list(KINDS)}

    def note_watching(self, problem: str | None) -> None:
        self.problems.append(problem)

    def stop(self) -> None:
        pass


def watch(monkeypatch: pytest.MonkeyPatch, play: Callable[[Listener, Api], Any], **at_first: Any) -> list[str | None]:
    """What was told of the watches until the play was over; `at_first` is how the API server is when they begin.
    FINDING_SECONDS begin once all that discovery knows of has been asked for: how long that takes tells of the machine.
    """
    spawn = kopf.spawn_tasks
    with served() as (server, url):
        api = Api(server)
        for name, value in at_first.items():
            setattr(api, name, value)

        async def spawned(**given: Any) -> Any:
            found, before = {resource.path() for resource in KINDS if resource in api.known}, len(api.asked)
            tasks = await spawn(**given)

            def all_asked() -> bool:
                asked = {path.partition("?")[0] for _, path, *_ in api.asked[before:]}
                return found <= asked or any(task.done() for task in tasks)

            await until_async(all_asked, "all that discovery knows of to be asked for")
            return tasks

        monkeypatch.setattr(kopf, "spawn_tasks", spawned)
        monkeypatch.setattr(
            "compression_operator.kube.watching.kopf_run.connect", lambda: kopf.ConnectionInfo(server=url)
        )
        listener: Any = Listener(lambda self: play(self, api))
        asyncio.run(operate(listener, ()))
    return listener.problems


def test_a_watch_that_is_refused_for_ever_is_not_said_to_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression_operator.kube.watching.thread.LASTING_SECONDS", 0.01)

    async def play(listener: Listener, api: Api) -> None:
        tries = f"{PODS.path()}?watch=true"
        await until_async(
            lambda: sum(path.startswith(tries) for _, path, _, _ in api.asked) > 1,
            "the watch of pods to be tried twice",
        )
        assert not listener.problems
        api.failing = None
        await until_async(lambda: listener.problems, "word of the watches")

    assert watch(monkeypatch, play, failing=PODS) == [None]


def test_what_discovery_does_not_know_yet_is_looked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf warns once of what it cannot find, and watches the rest."""
    monkeypatch.setattr("compression_operator.kube.watching.thread.LASTING_SECONDS", 0.01)
    monkeypatch.setattr(kopf_run, "FINDING_SECONDS", 0.1)

    async def play(listener: Listener, api: Api) -> None:
        await until_async(lambda: listener.problems, "word of the watches")
        api.known.add(RUNS)
        await until_async(lambda: None in listener.problems, "the watches to be open")

    told = watch(monkeypatch, play, known={PYTORCHJOBS, PODS, NAMESPACES})
    assert told[0] == (
        "nothing is watched, which is tried again: NotFound: /apis/modelcompression.io/v1alpha1/compressionruns not "
        "found in what the API server says that it has"
    )


def test_lists_and_watches_may_take_as_long_as_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large or busy cluster; a watch whose answer a proxy holds back until there is something to tell."""
    monkeypatch.setattr(kopf_run, "FINDING_SECONDS", 0.3)

    async def play(listener: Listener, _: Api) -> None:
        await until_async(lambda: listener.problems, "word of the watches")

    assert watch(monkeypatch, play, slow=1.5) == [None]


def test_credentials_that_are_refused_are_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(listener: Listener, _: Api) -> None:
        await until_async(lambda: listener.problems, "word of the watches")

    [told] = watch(monkeypatch, play, keys=False)
    assert told and told.startswith("nothing is watched, which is tried again: LoginError: ")


def test_a_login_that_fails_is_told_without_a_traceback_and_tried_again_soon() -> None:
    program = """
import asyncio, io, sys
log = sys.stderr = io.StringIO()
from compression_operator.cluster.process import operate as watch_and_work
from compression_operator.cluster.log_format import configure
from compression_operator.kube.watching import kopf_run, thread
from compression_operator.kube.login import NoCluster
configure("json", "info")
def connect():
    raise NoCluster("the token is not there")
kopf_run.connect, kopf_run.LOGIN_PAUSE_SECONDS = connect, 0.01
thread.LEAVING_SECONDS = 240  # Python takes itself down afterwards
class Service:
    def __init__(self):
        self.resources_returned = asyncio.Event()
    async def run(self):
        for _ in range(2400):
            if log.getvalue().count("the token is not there") > 1:
                break
            await asyncio.sleep(0.1)
    def note_event(self, *_):
        return {}
    note_watching = watched = stop = note_event
async def operate():
    await watch_and_work(Service(), ())
asyncio.run(operate())
print(log.getvalue())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=540, check=True)
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line]
    told = [line for line in lines if "the token is not there" in line["message"]]
    assert len(told) > 1 and not any("traceback" in line for line in lines)


def test_one_place_that_is_wholly_watched_is_enough() -> None:
    """Of another namespace, which is gone or denied, nothing may ever be seen."""
    opened: list[bool] = []
    openings = Openings({"a": list(KINDS), "b": list(KINDS)}, lambda: opened.append(True))
    urls = [URL(f"https://x/clusters/1{resource.path(place)}") for place in ("a", "b") for resource in KINDS]
    for number, url in enumerate(urls):
        assert bool(openings.never_requested()) == (number < len(KINDS)), (
            "of the first place alone, until all of it was asked"
        )
        openings.note_request(url)
        openings.note_answer(url, 200)  # a list
    for url in (urls[0], urls[1], urls[3], urls[5]):
        openings.note_answer(url.with_query(watch="true"), 200)
    openings.note_answer(urls[4].with_query(watch="true"), 403)
    assert not opened and openings.missing() in ({PODS.path("a")}, {PYTORCHJOBS.path("b")})
    openings.note_answer(urls[4].with_query(watch="true"), 200)
    assert opened and not openings.missing()
