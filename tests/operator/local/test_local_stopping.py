"""Local jobs that are stopped, and what a killed starter leaves behind: with real processes."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from local_jobs import ENDLESS, Local, a_job, a_run, running
from tests.cluster.paths import REPOSITORY
from tests.support.waiting import until, within

from compression_operator.core.jobs import JobState
from compression_operator.local import backend as local
from compression_operator.local import processes
from compression_pipeline.config import ExitClass


def test_deleting_lets_a_job_write_its_checkpoint_and_forgets_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, any=ENDLESS), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        await here.until(run, job.name, lambda j: j.progress is not None)
        pid = here.pid_of(job)
        await here.backend.delete(run, job.name)
        assert running(pid), "delete does not wait for its end"
        await here.backend.delete(run, job.name)
        await here.backend.close()
        assert not running(pid)
        assert await here.backend.observe(run) == []
        folder = here.jobs / job.name
        assert json.loads((folder / "termination.json").read_text())["message"].startswith("stopped at step")
        assert "progress" in (folder / "log").read_text(), "the log stays"
        # The same name again: a new job, the old one's files set aside.
        await here.backend.create(run, job)
        assert (folder.with_name(f"{folder.name}~1") / "log").exists()
        assert (await here.until(run, job.name, lambda j: True)).alive
        await here.backend.delete(run, job.name)
        await here.backend.close()

    asyncio.run(scenario())


def test_a_job_whose_folder_is_removed_while_it_runs_is_not_lost(tmp_path: Path) -> None:
    """Another one was started beside it."""

    async def scenario() -> None:
        here, run = Local(tmp_path, any=ENDLESS), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        await here.until(run, job.name, lambda j: j.progress is not None)
        pid = here.pid_of(job)
        shutil.rmtree(here.jobs)
        [still] = await here.backend.observe(run)
        assert (still.name, still.state, still.alive) == (job.name, JobState.RUNNING, True)
        here.backend.kill()
        await here.backend.close()
        assert not running(pid)
        assert await here.backend.observe(run) == []

    asyncio.run(scenario())


def test_a_job_that_does_not_listen_is_killed_after_its_grace_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MARGIN_SECONDS", 0)

    async def scenario() -> None:
        here, run = Local(tmp_path, any={**ENDLESS, "ignore_sigterm": True}), a_run()
        job = a_job(run, grace=1)
        await here.backend.create(run, job)
        await here.until(run, job.name, lambda j: j.progress is not None)
        pid = here.pid_of(job)
        began = time.monotonic()
        await here.backend.delete(run, job.name)
        still = await here.job(run, job.name)
        assert still and still.alive and still.deleting
        await here.backend.close()
        assert not running(pid) and time.monotonic() - began >= 1, "not before its time was over"

    asyncio.run(scenario())


def test_nothing_outlives_a_job(tmp_path: Path) -> None:
    """Not even a child in a session of its own, as torchrun's ranks are."""

    async def scenario() -> None:
        here, run = Local(tmp_path, any={"escape": True}), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        ended = await here.until(run, job.name, lambda j: not j.alive)
        assert ended.state is JobState.SUCCEEDED
        mark = f"COMPRESSION_TERMINATION_MESSAGE={here.jobs / job.name / 'termination.json'}"
        assert processes.marked(mark) == []

    asyncio.run(scenario())


def test_a_hard_stop_ends_everything_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, any={**ENDLESS, "ignore_sigterm": True, "escape": True}), a_run()
        job = a_job(run, grace=600)
        await here.backend.create(run, job)
        await here.until(run, job.name, lambda j: j.progress is not None)
        here.backend.kill()
        await within(here.backend.close(), "the backend to close")
        mark = f"COMPRESSION_TERMINATION_MESSAGE={here.jobs / job.name / 'termination.json'}"
        assert processes.marked(mark) == []

    asyncio.run(scenario())


def orphan(tmp_path: Path, behaviour: str) -> int:
    """Start a job from another process, which is then killed; returns the job's pid."""
    script = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        sys.path[:0] = [{str(Path(__file__).parents[1] / "support")!r}, {str(REPOSITORY)!r}]
        from local_jobs import HUB_WORD, Local, a_job, a_run

        async def main():
            here, run = Local(Path({str(tmp_path)!r}), any={behaviour}), a_run()
            await here.backend.create(run, job := a_job(run))
            await here.until(run, job.name, lambda j: j.progress is not None)
            print(here.pid_of(job), flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        starter.kill()
    return pid


def test_a_job_ends_by_itself_when_its_starter_is_killed(tmp_path: Path) -> None:
    pid = orphan(tmp_path, repr(ENDLESS))
    until(lambda: not running(pid), "the job to end")

    async def scenario() -> None:
        run = a_run()
        ended = await Local(tmp_path).job(run, a_job(run).name)
        assert ended and not ended.alive and ended.ended_as is ExitClass.INTERRUPTED
        assert ended.message.startswith("stopped at step")

    asyncio.run(scenario())


def test_an_orphan_that_goes_on_is_seen_alive_and_then_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MARGIN_SECONDS", -599)  # of the 600 s of grace
    pid = orphan(tmp_path, repr({**ENDLESS, "ignore_sigterm": True}))

    async def scenario() -> None:
        here, run = Local(tmp_path), a_run()
        name = a_job(run).name
        seen = await here.job(run, name)
        assert seen and seen.alive and seen.state is JobState.RUNNING, "never a second job beside it"
        ended = await here.until(run, name, lambda j: not j.alive)
        assert ended.interrupted and ended.message == "vanished while nobody watched it"
        assert not running(pid)

    asyncio.run(scenario())


def test_the_pid_of_another_process_is_no_job(tmp_path: Path) -> None:
    """After a restart of the machine a job's pid may be anybody's."""

    async def scenario() -> None:
        here, run = Local(tmp_path), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        await here.until(run, job.name, lambda j: not j.alive)
        folder = here.jobs / job.name
        (folder / "exit").unlink()
        (folder / "termination.json").unlink()
        record = json.loads((folder / "process.json").read_text())
        (folder / "process.json").write_text(json.dumps({**record, "pid": os.getpid()}))
        ended = await Local(tmp_path).job(run, job.name)
        assert ended and not ended.alive and ended.ended_as is ExitClass.INTERRUPTED

    asyncio.run(scenario())


def test_a_job_deleted_while_it_is_being_started_is_stopped(tmp_path: Path) -> None:
    async def scenario() -> None:
        here, run = Local(tmp_path, any=ENDLESS), a_run()
        job = a_job(run)
        creation = asyncio.create_task(here.backend.create(run, job))
        await asyncio.sleep(0)
        await here.backend.delete(run, job.name)
        await creation
        await within(here.backend.close(), "the backend to close")
        assert await here.backend.observe(run) == []

    asyncio.run(scenario())
