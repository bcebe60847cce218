"""An API server behind real HTTP that keeps objects and their versions and checks nothing else; and an operator of it.

What the operator would be told by its watches the test tells it, when it suits the test.
"""

import asyncio
import copy
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from http_server import Answer, Server, served
from tests.support.runs import Run, two_students

from compression_operator.backends.kinds import KINDS
from compression_operator.cluster.options import Options
from compression_operator.cluster.service import Service
from compression_operator.kube.client import EVENTS, RUNS, Resource

Body = dict[str, Any]
ON_A_CLAIM = two_students().claim("data")
RUN = RUNS.path("default", "demo")
CLAIM = "/api/v1/namespaces/default/persistentvolumeclaims/data"


def refused(code: int, message: str) -> Answer:
    return code, {"kind": "Status", "reason": "Forbidden", "message": message}, {}


class ApiWorld(Server):
    """Objects by their paths. `fault` may answer in the server's place; its paths have their queries."""

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, Body] = {}
        self.version = 100
        self.fault: Callable[[str, str], Answer | None] = lambda method, path: None
        self._lock = threading.Lock()  # each request has a thread

    def put(self, path: str, body: Body) -> Body:
        self.version += 1
        # An object of its own: what was there before may be on its way to somebody.
        body = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        self.objects[path] = body
        return copy.deepcopy(body)

    def edit(self, path: str, **spec: Any) -> Body:
        """As `kubectl apply` would; the answer is what a watch tells."""
        with self._lock:
            body = copy.deepcopy(self.objects[path])
            body["spec"] |= spec
            body["metadata"]["generation"] += 1
            return self.put(path, body)

    def backup(self) -> tuple[dict[str, Body], int]:
        with self._lock:
            return copy.deepcopy(self.objects), self.version

    def restore(self, backup: tuple[dict[str, Body], int]) -> None:
        """What was written since has never been."""
        with self._lock:
            self.objects, self.version = copy.deepcopy(backup)

    def touch(self, path: str) -> Body:
        """A change that means nothing."""
        with self._lock:
            return self.put(path, copy.deepcopy(self.objects[path]))

    def reply(self, method: str, path: str, body: Any) -> Answer:
        with self._lock:
            return self.fault(method, path) or getattr(self, f"_{method.lower()}")(urlsplit(path).path, body)

    def _get(self, path: str, _: Any) -> Answer:
        if path in self.objects:
            return 200, self.objects[path], {}
        if path.rsplit("/", 1)[-1] in {RUNS.plural, *(kind.resource.plural for kind in KINDS.values()), "pods"}:
            group, plural = path.split("/")[2], path.rsplit("/", 1)[-1]
            items = [
                body for at, body in self.objects.items() if at.split("/")[2] == group and at.split("/")[-2] == plural
            ]
            return 200, {"metadata": {"resourceVersion": str(self.version)}, "items": items}, {}
        return 404, {"kind": "Status", "reason": "NotFound", "message": "not found"}, {}

    def _post(self, path: str, body: Body) -> Answer:
        if f"{path}/{body['metadata']['name']}" in self.objects:
            return 409, {"kind": "Status", "reason": "AlreadyExists", "message": "it exists already"}, {}
        body["metadata"] |= {"uid": f"uid-{self.version}", "creationTimestamp": f"{datetime.now(UTC):%FT%TZ}"}
        return 201, self.put(f"{path}/{body['metadata']['name']}", body), {}

    def _put(self, path: str, body: Body) -> Answer:
        path = path.removesuffix("/status")
        if body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
            return 409, {"kind": "Status", "reason": "Conflict", "message": "the object has been modified"}, {}
        return 200, self.put(path, self.objects[path] | {"status": body["status"]}), {}

    def _patch(self, path: str, body: Body) -> Answer:
        known = self.objects[path]
        return 200, self.put(path, known | body | {"metadata": known["metadata"] | body.get("metadata", {})}), {}

    def _delete(self, path: str, _: Any) -> Answer:
        body = self.objects.pop(path, None)
        return (200, body, {}) if body is not None else self._get(path, None)

    def requests(self, method: str, path: str) -> int:
        """How many of these there were; `path` is what it begins with."""
        return sum(asked[0] == method and asked[1].startswith(path) for asked in list(self.asked))

    @property
    def events(self) -> list[str]:
        """Reasons of the Events that were written, one for each time that one was told."""
        path = EVENTS.path("default")
        posted = [asked[2]["reason"] for asked in list(self.asked) if asked[0] == "POST" and asked[1] == path]
        again = [
            self.objects[asked[1]]["reason"]
            for asked in list(self.asked)
            if asked[0] == "PATCH" and asked[1].startswith(path)
        ]
        return [*posted, *again]

    @property
    def status(self) -> Body:
        """The run's."""
        return self.objects[RUN].get("status", {})

    def names(self, resource: Resource) -> list[str]:
        return [path for path in list(self.objects) if path.startswith(f"{resource.path('default')}/")]


@contextmanager
def world(folder: Path, run: Run = ON_A_CLAIM) -> Iterator[tuple[ApiWorld, Path]]:
    """A cluster with one run in it, defaults filled in, and the kubeconfig that leads there."""
    with served(ApiWorld()) as (told, url):
        assert isinstance(told, ApiWorld)
        stored = run.named("demo", namespace="default", uid="uid-1", generation=1)
        told.put(RUN, stored.body() | {"spec": stored.model().spec.to_json()})
        config = {
            "clusters": [{"name": "x", "cluster": {"server": url}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            "users": [{"name": "x", "user": {"token": "t"}}],
            "current-context": "x",
        }
        (folder / "config").write_text(json.dumps(config))
        yield told, folder / "config"


def run_in_world(
    scenario: Callable[[ApiWorld], Coroutine[Any, Any, None]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run = ON_A_CLAIM,
) -> None:
    """Run the scenario in a cluster with one run in it."""
    with world(folder, run) as (api, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        asyncio.run(scenario(api))


class Operator:
    """A service at work, for `async with`."""

    def __init__(self, **more: Any) -> None:
        options: Body = {"leader_election": False, "host": "127.0.0.1", "port": 0, "resync_seconds": 3600, "image": "x"}
        self.service = Service(Options(**options | more))

    async def __aenter__(self) -> Service:
        self._task = asyncio.create_task(self.service.run())
        return self.service

    async def ended(self) -> None:
        """Wait until it ends by itself, of whatever."""
        await asyncio.wait((self._task,))

    async def __aexit__(self, *_: object) -> None:
        self.service.stop()
        await self._task
