"""Logs are looked at often enough to tell progress and silence apart, and never more often than allowed."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from jobs_world import World
from looks import open_jobs, step
from tests.support.waiting import until_async
from virtual_time import run

from compression_operator.api.attempts import Progress
from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.backends.log_watcher import AT_ONCE, LogWatcher, Look, newest
from compression_operator.core.jobs import JobState, ObservedJob
from compression_operator.core.steps import deadlines
from compression_operator.kube.client import ApiError
from compression_operator.kube.denied_permissions import Denials

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


async def looked_once(cluster: Cluster) -> LogWatcher:
    """A watcher that has read of step 7 in the log of the one pod, `pod` of job `uid`."""
    cluster.logs["pod"] = line(7)
    watcher = cluster.watcher()
    watcher.follow("ns/run", {"uid": "pod"})
    await until_async(lambda: cluster.changed, "the log to be read", seconds=10)
    seen = watcher.newest("uid", TIME).progress
    assert seen is not None and seen.step == 7
    return watcher


def test_the_newest_progress_and_the_newest_sign_of_life() -> None:
    later = TIME + timedelta(seconds=5)
    text = "noise\n" + line(3) + line(4, later) + '{"event": "prog'
    look = newest(text, TIME)
    assert look.progress and (look.progress.step, look.progress.total_steps, look.progress.loss) == (4, 100, 3.5)
    assert look.last_event == later and newest("nothing\n", TIME) == Look(TIME)
    reading = {"event": "progress", "step": 1, "totalSteps": 2, "documentsPerSecond": 20.5, "etaSeconds": None}
    assert newest(json.dumps(reading), TIME).progress == Progress(step=1, total_steps=2, documents_per_second=20.5)


def test_time_since_the_look_is_not_silence() -> None:
    look = Look(TIME, last_event=TIME - timedelta(seconds=3))
    assert look.alive_at(TIME + timedelta(seconds=25)) == TIME + timedelta(seconds=22)
    ahead = Look(TIME, last_event=TIME + timedelta(hours=1))  # the pod's clock is ahead
    assert ahead.alive_at(TIME) == TIME
    assert Look(TIME).alive_at(TIME) is None


WAITS = "waits for ns/b/distill-width/1, which makes the same artifact"
LIMITS = PhaseSettings(active_deadline_seconds=600, progress_deadline_seconds=300)


def says(seconds: int, message: str) -> str:
    time = (TIME + timedelta(seconds=seconds)).isoformat()
    return json.dumps({"event": "info", "time": time, "message": message}) + "\n"


def overdue(look: Look, seconds: int) -> list[str]:
    """What a job is stopped for that began at TIME, so many seconds later."""
    now = TIME + timedelta(seconds=seconds)
    job = ObservedJob("job", "distill-width", "f" * 32, 1, JobState.RUNNING, alive=True, started=TIME)
    return [why for when, why in deadlines(look.applied_to(job, now), LIMITS) if when <= now]


def test_what_waits_for_another_job_does_not_run_but_may_hang() -> None:
    """Of two runs on one store the one that only waited for the other was stopped."""

    def at(seconds: int, log: str) -> Look:
        return newest(log, TIME + timedelta(seconds=seconds))

    waiting = says(2, WAITS) + says(4000, WAITS)
    assert overdue(at(4030, waiting), 4040) == []
    [hangs] = overdue(at(4300, waiting), 4300)
    assert "no sign of life" in hangs
    turn = waiting + says(4050, "loads the teacher")
    later = "".join(says(second, "trains") for second in range(4100, 4601, 100))
    assert overdue(at(4649, turn + later), 4649) == []
    [late] = overdue(at(4650, turn + later), 4650)
    assert "ran longer than activeDeadlineSeconds (600)" in late
    # What has gone from the log's end was heard before.
    for before in (at(4051, turn), at(4050, waiting)):
        assert overdue(at(4649, later).after(before), 4649) == []
        assert len(overdue(at(4650, later).after(before), 4650)) == 1
    assert len(overdue(at(600, says(1, "trains") + says(599, "trains")), 600)) == 1, "it never waited"


def test_an_operator_that_has_just_started_stops_no_job_that_waits() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.logs = {"waits": says(4000, WAITS), "mute": ApiError(403, "Forbidden", "no")}
        watcher = cluster.watcher()
        assert overdue(watcher.newest("waits", TIME + timedelta(seconds=4001)), 4001) == []
        watcher.follow("ns/run", {"waits": "waits", "mute": "mute"})
        await until_async(lambda: cluster.changed, "the log to be read", seconds=10)
        assert "ran longer" not in str(overdue(watcher.newest("waits", TIME), 4001))
        assert "ran longer" in str(overdue(watcher.newest("mute", TIME), 4001)), "what cannot be heard runs"
        await watcher.close()

    run(scenario())


def test_before_the_first_look_a_job_has_the_benefit_of_the_doubt() -> None:
    async def scenario() -> None:
        watcher = Cluster().watcher()
        assert watcher.newest("uid", TIME).alive_at(TIME) == TIME, "also right after a restart of the operator"

    run(scenario())


def test_a_log_that_cannot_be_read_is_not_silent() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        watcher = await looked_once(cluster)
        first = watcher.newest("uid", TIME)
        cluster.logs["pod"] = ApiError(403, "Forbidden", "no")
        await asyncio.sleep(0.1)
        second = watcher.newest("uid", TIME)
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
        await until_async(lambda: len(cluster.changed) >= 3, "3 changes", seconds=10)
        assert watcher.newest("uid", TIME).last_event == TIME
        odd = watcher.newest("odd", TIME)
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
        await until_async(lambda: len(cluster.changed) >= 40, "40 changes", seconds=10)
        assert cluster.most_at_once == AT_ONCE and len(cluster.asked) == 40
        await watcher.close()

    run(scenario())


def test_what_is_gone_is_forgotten() -> None:
    async def scenario() -> None:
        cluster = Cluster()
        watcher = await looked_once(cluster)
        watcher.follow("ns/run", {})
        watcher.forget("uid")
        assert watcher.newest("uid", TIME).progress is None

    run(scenario())


@pytest.mark.parametrize("told_first", [True, False], ids=["no longer followed", "gone all at once"])
def test_what_goes_while_its_log_is_read_is_forgotten(told_first: bool) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        cluster.logs = {"pod": line(7), "other": line(8)}
        watcher = cluster.watcher()
        watcher.follow("ns/run", {"uid": "pod", "stays": "other"})
        await asyncio.sleep(0.002)
        assert cluster.asked == ["pod"], "and there is no answer yet"
        if told_first:
            watcher.follow("ns/run", {"stays": "other"})
        watcher.forget("uid")
        await asyncio.sleep(1)
        assert watcher.newest("uid", TIME).progress is None and "pod" not in cluster.asked[1:]
        stays = watcher.newest("stays", TIME).progress
        assert stays is not None and stays.step == 8
        watcher.forget("stays")
        watcher.follow("ns/run", {})
        before = len(cluster.changed)
        await asyncio.sleep(1)
        assert len(cluster.changed) == before, "nothing is left to look at"
        await watcher.close()

    run(scenario())


def test_a_run_whose_jobs_are_all_gone_is_not_looked_at_any_more() -> None:
    """Nobody may tell so: it may have become another installation's."""

    async def scenario() -> None:
        cluster = Cluster()
        watcher = cluster.watcher()
        watcher.follow("ns/run", {"uid": "pod"})
        watcher.forget("uid")
        await asyncio.sleep(1)
        assert not cluster.changed and not cluster.asked
        watcher.follow("ns/run", {"another": "pod"})
        await until_async(lambda: cluster.changed, "the log to be read", seconds=10)
        await watcher.close()

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
