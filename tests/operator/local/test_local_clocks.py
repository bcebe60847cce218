"""Deadlines of local jobs where time jumps: a laptop sleeps, the command is stopped, somebody sets a clock."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from local_jobs import ENDLESS, Local, a_job, a_run, now

from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.core.jobs import ObservedJob
from compression_operator.core.steps import deadlines

LIMIT = 600
LIMITS = PhaseSettings(active_deadline_seconds=LIMIT, progress_deadline_seconds=60)
HOUR = 3600.0


class Clocks:
    """The time of day and a clock that nobody sets, both for the test to move."""

    def __init__(self) -> None:
        self.day = now()
        self.steady = 0.0

    def now(self) -> datetime:
        return self.day

    def monotonic(self) -> float:
        return self.steady

    def go(self, day: float, steady: float) -> None:
        self.day += timedelta(seconds=day)
        self.steady += steady


def overdue(job: ObservedJob | None, clocks: Clocks) -> str:
    assert job and job.alive
    return "; ".join(why for when, why in deadlines(job, LIMITS) if when <= clocks.day)


@pytest.mark.parametrize(
    ("day", "steady"),
    [(HOUR, HOUR), (HOUR, 0.5), (-HOUR, 0.5)],
    ids=["stopped, or asleep", "asleep, or the clock was set ahead", "the clock was set back"],
)
@pytest.mark.parametrize("talks", [True, False])
def test_a_gap_between_two_looks_is_nobodys_silence_and_no_running_time(
    tmp_path: Path, day: float, steady: float, talks: bool
) -> None:
    async def scenario() -> None:
        clocks = Clocks()
        behaviour = ENDLESS if talks else {"sleep": 600}
        here, run = Local(tmp_path, now=clocks.now, monotonic=clocks.monotonic, any=behaviour), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        await here.until(run, job.name, lambda j: j.alive and (j.progress is not None or not talks))
        clocks.go(day, steady)
        assert not overdue(await here.job(run, job.name), clocks)
        here.backend.kill()
        await here.backend.close()

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def silent_job(folder: Path) -> AsyncIterator[tuple[Clocks, Path, Callable[[], Awaitable[str]]]]:
    """A job that says nothing by itself: its clocks, its log, and what it is overdue with when it is looked at."""
    clocks = Clocks()
    here, run = Local(folder, now=clocks.now, monotonic=clocks.monotonic, any={"sleep": 600}), a_run()
    job = a_job(run)
    await here.backend.create(run, job)

    async def look() -> str:
        return overdue(await here.job(run, job.name), clocks)

    assert not await look()
    yield clocks, here.jobs / job.name / "log", look
    here.backend.kill()
    await here.backend.close()


def test_silence_and_running_time_are_counted_from_look_to_look(tmp_path: Path) -> None:
    async def scenario() -> None:
        told: dict[int, str] = {}
        async with silent_job(tmp_path) as (clocks, log, look):
            for second in range(1, 601):
                if second == 300:
                    clocks.go(-HOUR, 0)
                if second in (50, 100):
                    log.write_text(log.read_text() + f'{{"event": "info", "time": "{clocks.day.isoformat()}"}}\n')
                clocks.go(1, 1)
                told[second] = await look()
        silent = [second for second, said in told.items() if "no sign of life" in said]
        assert silent == list(range(160, 601)), "60 s after the last of them"
        assert [second for second, said in told.items() if "ran longer" in said] == [600]

    asyncio.run(scenario())


def test_what_waits_for_another_job_does_not_run_but_may_hang(tmp_path: Path) -> None:
    """Of two runs on one store the one that only waited for the other was stopped."""

    async def scenario() -> None:
        told: dict[int, str] = {}
        async with silent_job(tmp_path) as (clocks, log, look):
            for second in range(1, 1701):
                if second % 50 == 0 and second != 500:
                    said = "waits for b/distill/1, which makes the same artifact" if second < 1000 else "trains"
                    event = {"event": "info", "time": clocks.day.isoformat(), "message": said}
                    with log.open("a") as file:
                        file.write(json.dumps(event) + "\n")
                clocks.go(1, 1)
                told[second] = await look()
        silent = [second for second, said in told.items() if "no sign of life" in said]
        assert silent == list(range(510, 550)), "60 s after the last word"
        late = [second for second, said in told.items() if "ran longer" in said]
        # It began to wait in its 50th second, and had its turn in the 1000th.
        assert late == list(range(1000 + LIMIT - 50, 1701))

    asyncio.run(scenario())
