"""An etcd that was restored from a backup: what is known goes back with the cluster, and the watches begin anew."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import kopf
import pytest
from api_world import RUN, ApiWorld, Operator, world
from cached_objects import body, cache
from http_server import served
from jobs_world import manifest
from test_resync import Comparing, play
from tests.support.waiting import until_async

from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cluster.health import WatchHealth
from compression_operator.kube.cache import version_of
from compression_operator.kube.client import RUNS, Kube, Listing, Resource

KEPT = {"app.kubernetes.io/managed-by": "compression-operator"}


def job(name: str, phase: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": KEPT}
    return {"apiVersion": PYTORCHJOBS.api_version, "kind": "PyTorchJob", "metadata": meta, "status": {"phase": phase}}


def path(name: str) -> str:
    return PYTORCHJOBS.path("default", name)


def known(it: Comparing) -> dict[str, str]:
    return {found["metadata"]["name"]: found["status"]["phase"] for found in it.caches[PYTORCHJOBS].all()}


@pytest.mark.parametrize("place", ["default", None])
@pytest.mark.parametrize("later", [0, 100])
def test_what_is_known_goes_back_with_the_cluster(place: str | None, later: int) -> None:
    """Jobs stayed as they were known, though they were gone, or had ended, until the versions had caught up. Where a
    LIST comes `later`, and the cluster's version has by then, each object tells by its own.
    """

    async def scenario(it: Comparing) -> None:
        it.api.put(path("old"), job("old", "Pending"))
        it.api.put(path("lost"), job("lost", "Running"))
        backup = it.api.backup()
        it.api.put(path("old"), job("old", "Running"))
        it.api.put(path("new"), job("new", "Running"))
        lost = it.api.objects.pop(path("lost"))
        await it.look()
        lost["metadata"]["resourceVersion"] = str(it.api.version)
        it.caches[PYTORCHJOBS].remove(lost)
        assert known(it) == {"old": "Running", "new": "Running"}
        it.api.restore(backup)
        it.api.version += later
        await it.look()
        assert known(it) == {"old": "Pending", "lost": "Running"}
        assert it.gone == ["new"] and it.returned == 1
        assert {"old", "lost"} <= {*it.changed}
        ended = it.api.put(path("old"), job("old", "Succeeded"))
        assert it.caches[PYTORCHJOBS].put(ended) and known(it)["old"] == "Succeeded", "as a watch tells"
        await it.look()
        assert it.returned == 1 and not it.gone, "once"

    play(scenario, place=place)


def test_a_watch_that_goes_on_from_the_versions_of_before_is_found_silent_and_one_that_begins_anew_is_not() -> None:
    async def scenario(it: Comparing) -> None:
        backup = it.api.backup()
        told = it.api.touch(RUN)
        it.resync.told(RUNS, None, told)
        await it.look()
        assert it.resync.silent(0.0) is None
        it.api.restore(backup)
        await it.look()
        await it.look()
        assert "compressionruns" in (it.resync.silent(0.0) or ""), "it has told of none of these"
        it.resync.told(RUNS, None, it.api.objects[RUN])
        assert it.resync.silent(0.0) is None

    play(scenario)


class Late(Kube):
    """The first LIST of runs is answered, and the answer is late."""

    def __init__(self, url: str) -> None:
        super().__init__(lambda: kopf.ConnectionInfo(server=url))
        self.answered, self.arrives, self.lists = asyncio.Event(), asyncio.Event(), 0

    async def list(self, resource: Resource, *given: Any, **more: Any) -> Listing:
        found = await super().list(resource, *given, **more)
        self.lists += resource == RUNS
        if resource == RUNS and self.lists == 2:
            self.answered.set()
            await self.arrives.wait()
        return found


def test_an_answer_that_comes_late_is_no_state_that_went_back(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(api: ApiWorld, url: str) -> None:
        it = Comparing(api, Late(url))
        assert isinstance(it.kube, Late)
        await it.look()
        late = asyncio.create_task(it.resync.compare(judge=True))
        await it.kube.answered.wait()
        it.caches[RUNS].put(api.touch(RUN))
        await it.resync.compare(judge=True)
        it.kube.arrives.set()
        await late
        assert [version_of(found) for found in it.caches[RUNS].all()] == [api.version]
        assert not it.returned and not it.gone and "etcd" not in caplog.text
        await it.kube.close()

    with served(ApiWorld()) as (api, url), caplog.at_level(logging.WARNING):
        assert isinstance(api, ApiWorld)
        api.put(RUN, {"metadata": {"name": "demo", "namespace": "default", "uid": "uid-1"}})
        asyncio.run(scenario(api, url))


def test_a_run_whose_jobs_were_lost_is_looked_after_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator knew of a job that had never been, and waited for it."""

    async def scenario(api: ApiWorld) -> None:
        backup, jobs = api.backup(), PYTORCHJOBS.path("default")
        async with Operator(resync_seconds=0.1) as service:
            await until_async(
                lambda: api.names(PYTORCHJOBS) and api.condition("Ready")[0], "a job, and the condition Ready"
            )
            assert api.requests("POST", jobs) == 1
            service.resources_returned.clear()
            api.restore(backup)
            await until_async(
                lambda: api.names(PYTORCHJOBS) and api.condition("Ready")[0], "another job, and the condition Ready"
            )
            await until_async(service.resources_returned.is_set, "all that the watches look at to be listed again")
            assert api.requests("POST", jobs) == 2

    spec = manifest(storage={"persistentVolumeClaim": {"claimName": "data"}}).spec.to_json()
    with world(tmp_path, spec) as (api, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        asyncio.run(scenario(api))


def test_a_cache_that_goes_back_keeps_what_is_elsewhere() -> None:
    held = cache()
    held.put(body("a", 9, run="x"))
    held.put(body("b", 9, run="x"))
    held.put(body("c", 9))
    held.put(body("there", 9, run="x", namespace="other"))
    held.remove(body("c", 10))
    held.remove(body("gone", 10, namespace="other"))
    listed = [body("a", 3, run="y"), body("b", 4, "another", run="x"), body("c", 2)]
    changed, gone = held.go_back_to(listed, "ns")
    assert changed == listed and [found["metadata"]["uid"] for found in gone] == ["uid-b"]
    assert [found["metadata"]["name"] for found in held.members("x")] == ["b", "there"]
    assert not held.has_gone("uid-c") and held.has_gone("uid-gone")


def test_a_watch_that_starts_over_owes_everything() -> None:
    watch = WatchHealth()
    watch.told("a", 990)
    watch.compare({"a": 990, "b": 995}, 1000, 100.0)
    watch.start_over()
    assert watch.lag(200.0) == 0.0
    watch.compare({"a": 500}, 510, 200.0)
    assert watch.lag(203.0) == 3.0
    watch.told("a", 500)
    assert watch.lag(203.0) == 0.0
