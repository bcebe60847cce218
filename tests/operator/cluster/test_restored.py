"""An etcd that was restored from a backup: the operator ends, so that the next one begins with what is there."""

import asyncio
from pathlib import Path
from typing import Any

import kopf
import pytest
from api_world import RUN, ApiWorld, Operator, run_in_world
from http_server import served
from test_resync import Comparing, play
from tests.support.matchers import has_condition
from tests.support.waiting import until_async, within

from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.cluster.resync import StateWentBack
from compression_operator.kube.cache import version_of
from compression_operator.kube.client import RUNS, Kube, Listing, Resource

KEPT = {"app.kubernetes.io/managed-by": "compression-operator"}


def job(name: str, phase: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": KEPT}
    return {"apiVersion": PYTORCHJOBS.api_version, "kind": "PyTorchJob", "metadata": meta, "status": {"phase": phase}}


def path(name: str) -> str:
    return PYTORCHJOBS.path("default", name)


@pytest.mark.parametrize("place", ["default", None])
@pytest.mark.parametrize(("later", "words"), [(0, "in an older state"), (100, "pytorchjobs")])
def test_a_cluster_that_went_back_is_seen_by_the_next_list(place: str | None, later: int, words: str) -> None:
    """Jobs stayed as they were known, though they were gone, or had ended, until the versions had caught up. Where a
    LIST comes `later`, and the cluster's version has by then, each object tells by its own.
    """

    async def scenario(it: Comparing) -> None:
        it.api.put(path("old"), job("old", "Pending"))
        backup = it.api.backup()
        it.api.put(path("old"), job("old", "Running"))
        await it.look()
        await it.look()
        it.api.restore(backup)
        it.api.version += later
        with pytest.raises(StateWentBack, match=words):
            await it.look()

    play(scenario, place=place)


@pytest.mark.parametrize("place", ["default", None])
def test_what_was_deleted_since_the_backup_is_back_in_it(place: str | None) -> None:
    """`etcdutl snapshot restore --bump-revision` leaves no version lower than before, and no object is older."""

    async def scenario(it: Comparing) -> None:
        it.api.put(path("old"), job("old", "Pending"))
        await it.look()
        backup = it.api.backup()
        it.api.objects.pop(path("old"))
        it.api.version += 1
        await it.look()
        assert it.gone == ["old"]
        await it.look()
        it.api.restore(backup)
        it.api.version += 1_000_000
        with pytest.raises(StateWentBack, match="pytorchjobs"):
            await it.look()

    play(scenario, place=place)


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


def test_an_answer_that_comes_late_is_no_state_that_went_back() -> None:
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
        assert not it.returned and not it.gone
        await it.kube.close()

    with served(ApiWorld()) as (api, url):
        assert isinstance(api, ApiWorld)
        api.put(RUN, {"metadata": {"name": "demo", "namespace": "default", "uid": "uid-1"}})
        asyncio.run(scenario(api, url))


def test_a_run_whose_jobs_were_lost_is_looked_after_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator knew of a job that had never been, and waited for it. It ends, and the one that Kubernetes starts in
    its place knows nothing.
    """

    async def scenario(api: ApiWorld) -> None:
        backup, jobs = api.backup(), PYTORCHJOBS.path("default")

        async def has_job() -> None:
            await until_async(
                lambda: api.names(PYTORCHJOBS) and has_condition(api, "Ready"), "a job, and the condition Ready"
            )

        operator = Operator(resync_seconds=0.1)
        with pytest.raises(ExceptionGroup) as ended:
            async with operator:
                await has_job()
                api.restore(backup)
                await within(operator.ended(), "the operator to end")
        assert ended.value.subgroup(StateWentBack)
        async with Operator(resync_seconds=0.1):
            await has_job()
        assert api.requests("POST", jobs) == 2

    run_in_world(scenario, tmp_path, monkeypatch)
