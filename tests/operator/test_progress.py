"""Logs are looked at often enough to tell progress and silence apart, and never more often than allowed."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from jobs_world import World
from looks import open_jobs, step
from virtual_time import run

from compression_operator.api.status import Progress
from compression_operator.backends.progress import AT_ONCE, LogWatcher, Look, newest
from compression_operator.denials import Denials
from compression_operator.kube import ApiError

TIME = datetime(2020, 11, 1, 12, tzinfo=UTC)  # past, whatever the machine's clock says


def line(step: int, at: datetime = TIME) -> str:
    event = {"event": "progress", "time": at.isoformat(), "step": step, "totalSteps": 100, "loss": 3.5}
    return json.dumps(event) + "\n"


class Cluster:
    """Logs by pod, and how they were asked for."""

    def __init__(self) -> None:
        self.logs: dict[str, str | Exception] = {}
        self.asked: list[str] = []
        self.changed: list[str] = []
        self.denials = Denials(self.changed.append)
        self.at_once = self.most_at_once = 0

    async def log(self, namespace: str, pod: str, **_: Any) -> str:
        self.asked.append(pod)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.005)
        self.at_once -= 1
        text = self.logs.get(pod, "")
        if isinstance(text, Exception):
            raise text
        return text

    def watcher(self, period: float = 0.05) -> LogWatcher:
        return LogWatcher(
            self,  # type: ignore[arg-type] # a stand-in
            self.changed.append,
            denials=self.denials,
            period_seconds=period,
            first_seconds=0.0,
        )


def test_the_newest_progress_and_the_newest_sign_of_life() -> None:
    later = TIME + timedelta(seconds=5)
    text = "noise\n" + line(3) + line(4, later) + '{"event": "prog'
    progress, last = newest(text)
    assert progress is not None and (progress.step, progress.total_steps, progress.loss) == (4, 100, 3.5)
    assert last == later and newest("nothing\n") == (None, None)
    reading = {"event": "progress", "step": 1, "totalSteps": 2, "documentsPerSecond": 20.5, "etaSeconds": None}
    progress, _ = newest(json.dumps(reading))
    assert progress == Progress(step=1, total_steps=2, documents_per_second=20.5)


def test_time_since_the_look_is_not_silence() -> None:
    look = Look(TIME, last_event=TIME - timedelta(seconds=3))
    assert look.alive_at(TIME + timedelta(seconds=25)) == TIME + timedelta(seconds=22)
    ahead = Look(TIME, last_event=TIME + timedelta(hours=1))  # the pod's clock is ahead
    assert ahead.alive_at(TIME) == TIME
    assert Look(TIME).alive_at(TIME) is None


def test_before_the_first_look_a_job_has_the_benefit_of_the_doubt() -> None:
    async def scenario() -> None:
        watcher = Cluster().watcher()
        assert watcher.look("uid", TIME).alive_at(TIME) == TIME, "also right after a restart of the operator"

    run(scenario())


def test_a_log_that_cannot_be_read_is_not_silent() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.logs["pod"] = line(7)
        watcher = cluster.watcher()
        watcher.follow("ns/run", {"uid": "pod"})
        await asyncio.sleep(0.03)
        first = watcher.look("uid", TIME)
        cluster.logs["pod"] = ApiError(403, "Forbidden", "no")
        await asyncio.sleep(0.1)
        second = watcher.look("uid", TIME)
        assert first.last_event == TIME and second.last_event == second.at > TIME
        assert second.progress is not None and second.progress.step == 7, "what was known stays"
        await watcher.close()

    run(scenario())


def test_a_log_that_nobody_foresaw_deafens_to_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.logs = {"odd": ValueError("nobody foresaw that"), "pod": line(7)}
        watcher = cluster.watcher(period=0.01)
        watcher.follow("ns/run", {"odd": "odd", "uid": "pod"})
        async with asyncio.timeout(10):
            while len(cluster.changed) < 3:
                await asyncio.sleep(0.01)
        assert watcher.look("uid", TIME).last_event == TIME
        odd = watcher.look("odd", TIME)
        assert odd.last_event == odd.at > TIME, "what cannot be heard is not silent"
        await watcher.close()

    run(scenario())
    assert "cannot read the log of pod odd: nobody foresaw that" in caplog.text and "Traceback" in caplog.text


def test_a_run_is_looked_at_once_a_period_whatever_is_asked() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        watcher = cluster.watcher(period=0.2)
        for _ in range(50):  # as many passes
            watcher.follow("ns/run", {"one": "pod-1", "two": "pod-2"})
            await asyncio.sleep(0.01)
        assert len(cluster.asked) <= 2 * 4 and len(cluster.changed) <= 4
        watcher.follow("ns/run", {})
        count = len(cluster.asked)
        await asyncio.sleep(0.3)
        assert len(cluster.asked) == count, "none of its jobs runs any more"
        watcher.follow("ns/run", {"three": "pod-3"})
        await asyncio.sleep(0.05)
        assert cluster.asked[-1] == "pod-3"
        await watcher.close()

    run(scenario())


def test_few_logs_are_read_at_once() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        watcher = cluster.watcher(period=10)
        for number in range(40):
            watcher.follow(f"ns/run-{number}", {f"uid-{number}": f"pod-{number}"})
        async with asyncio.timeout(10):
            while len(cluster.changed) < 40:
                await asyncio.sleep(0.01)
        assert cluster.most_at_once == AT_ONCE and len(cluster.asked) == 40
        await watcher.close()

    run(scenario())


def test_what_is_gone_is_forgotten() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.logs["pod"] = line(7)
        watcher = cluster.watcher()
        watcher.follow("ns/run", {"uid": "pod"})
        await asyncio.sleep(0.03)
        watcher.follow("ns/run", {})
        watcher.forget("uid")
        assert watcher.look("uid", TIME).progress is None

    run(scenario())


def test_a_step_that_is_done_has_done_all_of_it() -> None:
    """However early its log was looked at last; the loss of back then is not its last."""
    world = World()
    world.look()
    name = open_jobs(world)[0]
    world.start(name)
    seen = Progress(step=26, total_steps=40, loss=4.3, tokens_per_second=1200.0, eta_seconds=22)
    world.update(name, progress=seen)
    world.look()
    assert step(world, "prepare").progress == seen
    world.succeed(name)
    world.look()
    assert step(world, "prepare").progress == Progress(step=40, total_steps=40, tokens_per_second=1200.0)
