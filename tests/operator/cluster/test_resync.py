"""The caches held against LISTs: what is refused, what comes back, and a state that is an older one again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import kopf
import pytest
from api_world import RUN, ApiWorld, refused
from http_server import Answer, served

from compression_operator.backends.backend import job_group
from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cluster.resync import Place, Resync
from compression_operator.kube.cache import Body, Cache
from compression_operator.kube.client import PODS, RUNS, Kube, Resource

Fault = Callable[[str, str], Answer | None]


class Comparing:
    """The caches of an operator of one namespace, or of all, and what was told when they were compared."""

    def __init__(self, api: ApiWorld, kube: Kube, place: Place = "default") -> None:
        self.api = api
        self.kube = kube
        self.caches = {RUNS: Cache(lambda _: None), PYTORCHJOBS: Cache(job_group), PODS: Cache(lambda _: None)}
        self.changed: list[str] = []
        self.gone: list[str] = []
        self.returned = 0
        places = [place] if place else []
        self.resync = Resync(
            self.kube, self.caches, places, changed=self._changed, gone=self._gone, returned=self._returned
        )

    def _changed(self, _: Resource, body: Body) -> None:
        self.changed.append(body["metadata"]["name"])

    def _gone(self, _: Resource, body: Body) -> None:
        self.gone.append(body["metadata"]["name"])

    def _returned(self) -> None:
        self.returned += 1

    async def look(self, fault: Fault = lambda method, path: None) -> None:
        self.api.fault = fault
        self.changed.clear()
        self.gone.clear()
        await self.resync.compare(judge=True)


def missing(_: str, path: str) -> Answer | None:
    """As long as the CRD of runs is not installed."""
    return (404, "404 page not found", {}) if RUNS.plural in path else None


def play(scenario: Callable[[Comparing], Awaitable[None]], **more: Any) -> None:
    """With one run in the cluster."""

    async def scene(api: ApiWorld, url: str) -> None:
        comparing = Comparing(api, Kube(lambda: kopf.ConnectionInfo(server=url)), **more)
        await scenario(comparing)
        await comparing.kube.close()

    with served(ApiWorld()) as (api, url):
        assert isinstance(api, ApiWorld)
        api.put(RUN, {"metadata": {"name": "demo", "namespace": "default", "uid": "uid-1"}})
        asyncio.run(scene(api, url))


def no(verb: str, resource: Resource) -> Fault:
    """Nobody may do this."""

    def fault(_: str, path: str) -> Answer | None:
        asked = "watch" if "watch=true" in path else "list"
        if asked != verb or f"/{resource.plural}?" not in path:
            return None
        group = f'"{resource.plural}" in API group "{resource.group}" in the namespace "default"'
        return refused(403, f'User "a" cannot {verb} resource {group}')

    return fault


@pytest.mark.parametrize("resource", [RUNS, PYTORCHJOBS, PODS])
def test_runs_that_can_be_listed_stay_known(resource: Resource) -> None:
    """Where their watch alone was refused they were forgotten with every look, and found by the next."""

    async def scenario(it: Comparing) -> None:
        await it.look()
        assert it.changed == ["demo"]
        for _ in range(3):
            await it.look(no("watch", resource))
            assert len(it.caches[RUNS]) == 1 and not it.changed and not it.gone
            assert it.resync.denied() == {"default": True}

    play(scenario)


def test_one_refusal_to_list_runs_says_nothing_of_them_yet() -> None:
    async def scenario(it: Comparing) -> None:
        for _ in range(2):
            await it.look()
            await it.look(no("list", RUNS))
            assert len(it.caches[RUNS]) == 1 and not it.gone
        await it.look(no("list", RUNS))
        assert len(it.caches[RUNS]) == 0 and it.gone == ["demo"]
        await it.look()
        assert it.changed == ["demo"] and it.resync.denied() == {"default": False}

    play(scenario)


@pytest.mark.parametrize(
    ("faults", "returned"),
    [
        ([missing], 1),
        ([missing, no("list", PYTORCHJOBS)], 1),
        ([no("list", RUNS), missing], 1),
        ([no("list", RUNS)], 0),
    ],
)
def test_a_resource_that_was_missing_is_told_once_it_is_there(faults: list[Fault], returned: int) -> None:
    """Also where a permission was wanting last: the CRD came first, and then its rule in the Role."""

    async def scenario(it: Comparing) -> None:
        for fault in faults:
            await it.look(fault)
            assert it.resync.unusable and not it.returned
        await it.look()
        await it.look()
        assert it.resync.unusable is None and it.returned == returned

    play(scenario)
