"""Two installations of the operator on one namespace: a run is looked after by the one that looked at it first."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from api_world import RUN, ApiWorld, Operator, world
from jobs_world import World
from looks import at, open_jobs, step
from test_progress import TIME, Cluster, line
from tests.support.matchers import has_condition
from tests.support.waiting import until_async

from compression_operator.api.attempts import Progress
from compression_operator.backends.log_watcher import newest
from compression_operator.backends.pytorchjob.kind import PYTORCHJOBS
from compression_operator.core.jobs import JobState, ObservedJob


def manager(api: ApiWorld) -> str:
    return api.objects[RUN].get("status", {}).get("managedBy", "")


def test_a_run_is_left_alone_by_all_but_one_and_taken_over_where_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(api: ApiWorld) -> None:
        async with Operator(resync_seconds=0.1, lease_name="one"), Operator(resync_seconds=0.1, lease_name="two"):
            await until_async(
                lambda: "ManagedElsewhere" in api.events, "one of them to tell that the other manages the run"
            )
        first = manager(api)
        assert first in ("default/one", "default/two") and has_condition(api, "Ready")
        assert len(api.names(PYTORCHJOBS)) == 1
        told, before = api.events.count("ManagedElsewhere"), api.edit(RUN, maxParallelJobs=1)
        async with Operator(resync_seconds=0.1, lease_name="three"):
            await until_async(lambda: api.events.count("ManagedElsewhere") > told, "the third to tell so too")
        assert api.objects[RUN] == before, "though nobody looks after it any more"
        async with Operator(resync_seconds=0.1, lease_name="three", take_over=(first,)):
            await until_async(
                lambda: api.objects[RUN]["status"]["observedGeneration"] == 2, "the third to take the run over"
            )
        assert manager(api) == "default/three" and len(api.names(PYTORCHJOBS)) == 1

    with world(tmp_path) as (api, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        asyncio.run(scenario(api))


# -- what each of them would remember of a job's log ------------------------------------------------------------------


def test_progress_never_goes_back_within_an_attempt() -> None:
    world = at(World())
    (name,) = open_jobs(world)
    seen: list[int] = []
    for done in (47, 21, 47, 21, 48, 21):
        world.update(name, progress=Progress(step=done, total_steps=100, loss=1.0))
        world.pass_time(1)
        world.look()
        progress = step(world, "prepare").progress
        seen.append(progress.step if progress else 0)
    assert seen == [47, 47, 47, 47, 48, 48]
    world.fail(name, None)
    world.look()
    world.pass_time(20)
    world.look()
    (again,) = open_jobs(world)
    world.start(again)
    world.update(again, progress=Progress(step=3, total_steps=100))
    world.look()
    progress = step(world, "prepare").progress
    assert progress and progress.step == 3, "of another attempt"


def test_what_a_phase_does_next_is_progress_though_it_is_less() -> None:
    world = at(World())
    (name,) = open_jobs(world)
    read = Progress(step=900_000, total_steps=1_000_000, time=TIME)
    tokenized = Progress(step=10, total_steps=500, time=TIME + timedelta(seconds=40))
    for one, shown in ((read, read), (tokenized, tokenized), (read, tokenized)):
        world.update(name, progress=one)
        world.look()
        assert step(world, "prepare").progress == shown


@pytest.mark.parametrize(("ahead", "written"), [(-5, False), (10, False), (25, True)])
def test_progress_is_written_as_rarely_as_looked_at_whoever_wrote_it(ahead: int, written: bool) -> None:
    cluster = Cluster()
    cluster.logs["pod"] = line(48, TIME + timedelta(seconds=ahead))
    known = newest(line(47), TIME).progress
    assert known is not None and known.time == TIME
    job = ObservedJob("j", "s", "f", 1, JobState.RUNNING, alive=True, started=TIME)

    async def scenario() -> None:
        watcher = cluster.watcher(period=30)
        watcher.follow("default/demo", {"uid": "pod"})
        await until_async(lambda: cluster.changed, "the log to be read")
        told = watcher.with_progress(job, "uid", known, TIME).progress
        assert told is not None and (told.step == 48) == written
        first = watcher.with_progress(job, "uid", None, TIME).progress
        assert first is not None and first.step == 48
        await watcher.close()

    asyncio.run(scenario())
