"""Jobs that a fork server starts behave as those that are programs of their own. The launcher is the real one."""

import asyncio
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import until

from compression_operator.local import machine, processes
from compression_operator.local.backend import COMMAND
from compression_operator.local.forkserver import ForkedJob
from compression_operator.local.starting import Child, Starter
from compression_pipeline.config import TERMINATION_VARIABLE, ExitClass, Phase
from compression_pipeline.launcher.heartbeat import Heartbeat

FINGERPRINT = "0123456789abcdef" * 2


@dataclass
class Started:
    """A job of the phase report, whose rank fails at once: nothing is there that it could tell of."""

    folder: Path
    child: Child

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def termination(self) -> dict[str, Any]:
        return json.loads((self.folder / "termination").read_text())

    @property
    def processes(self) -> list[int]:
        return [found.pid for found in processes.marked(f"{TERMINATION_VARIABLE}={self.folder / 'termination'}")]


async def start(starter: Starter, folder: Path, *, ranks: int = 1, gpus: tuple[str, ...] = ()) -> Started:
    folder.mkdir(parents=True)
    config = {"run": "demo", "step": "report-a", "fingerprint": FINGERPRINT, "store": str(folder.parent / "store")}
    config |= {"attempt": 1, "gracePeriodSeconds": 30}
    config |= {role: f"{role}-x" for role in ("data", "teacher", "pruned", "distilled", "exported", "evaluated")}
    environment = machine.environment(
        os.environ,
        Phase.REPORT,
        config=json.dumps(config),
        termination=folder / "termination",
        gpus=gpus,
    )
    with (folder / "log").open("ab") as log:
        return Started(folder, await starter.start(Phase.REPORT, environment, log, ranks=ranks, gpus=gpus))


def held(folder: Path) -> None:
    """Keep the step, as a job of another run would, until the test ends."""
    store = folder / "store"
    probe = store / "probe"
    probe.mkdir(parents=True)
    assert Heartbeat(store / "work" / FINGERPRINT, "other/report-a/1", token="other", probe=probe).claim() is None  # noqa: S106


async def waiting(job: Started) -> Started:
    await asyncio.to_thread(until, lambda: "waits for other/report-a/1" in job.log, lambda: f"a wait in {job.log}")
    return job


def test_a_forked_job_ends_as_one_that_is_started_by_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        forking, plain = Starter(COMMAND, fork=True), Starter(COMMAND, fork=False)
        ended: list[tuple[int | None, str, str]] = []
        for name, starter in (("forked", forking), ("again", forking), ("plain", plain)):
            job = await start(starter, tmp_path / name / "job")
            assert isinstance(job.child, ForkedJob) == (starter is forking)
            code = await job.child.wait()
            assert not job.processes
            log, said = (text.replace(str(tmp_path / name), "") for text in (job.log, json.dumps(job.termination)))
            ended.append((code, log, said))
        await forking.close()
        assert ended[0] == ended[1] == ended[2]
        assert ended[0][0] == ExitClass.TRANSIENT.code and '"missing": ["data-x"]' in ended[0][2], ended[0]

    asyncio.run(scenario())


def test_what_needs_a_gpu_or_ranks_is_no_fork(tmp_path: Path) -> None:
    async def scenario() -> None:
        starter = Starter(COMMAND, fork=True)
        for name, how in (("gpu", {"gpus": ("0",)}), ("ranks", {"ranks": 2})):
            job = await start(starter, tmp_path / name / "job", **how)  # pyright: ignore[reportArgumentType]
            assert not isinstance(job.child, ForkedJob)
            await job.child.wait()
        await starter.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["terminate", "stdin", "kill"])
def test_a_forked_job_is_found_by_its_mark_and_ends_when_it_is_told(tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        held(tmp_path)
        starter = Starter(COMMAND, fork=True)
        one, other = [await waiting(await start(starter, tmp_path / name)) for name in ("one", "other")]
        assert one.processes == [one.child.pid] and other.processes == [other.child.pid]
        assert os.getsid(one.child.pid) == one.child.pid  # a terminal's Ctrl-C does not reach it
        if how == "stdin":
            assert one.child.stdin is not None
            one.child.stdin.close()
        else:
            getattr(one.child, how)()
        code = await one.child.wait()
        assert code == (-signal.SIGKILL if how == "kill" else ExitClass.INTERRUPTED.code)
        assert not one.processes and other.processes == [other.child.pid]
        other.child.terminate()
        await other.child.wait()
        await starter.close()

    asyncio.run(scenario())


def test_a_job_outlives_the_server_and_the_next_one_is_started_without_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        held(tmp_path)
        starter = Starter(COMMAND, fork=True)
        job = await waiting(await start(starter, tmp_path / "one"))
        server = int(Path(f"/proc/{job.child.pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert "forkserver" in Path(f"/proc/{server}/cmdline").read_text()
        os.kill(server, signal.SIGKILL)
        ended = asyncio.create_task(job.child.wait())
        later = await waiting(await start(starter, tmp_path / "two"))
        assert not isinstance(later.child, ForkedJob)
        assert not ended.done() and job.processes == [job.child.pid]
        job.child.terminate()
        assert await ended is None and job.termination["class"] == ExitClass.INTERRUPTED
        later.child.terminate()
        assert await later.child.wait() == ExitClass.INTERRUPTED.code
        await starter.close()

    asyncio.run(scenario())


def test_the_server_ends_with_who_started_it(tmp_path: Path) -> None:
    async def scenario() -> int:
        starter = Starter(COMMAND, fork=True)
        job = await start(starter, tmp_path / "job")
        server = int(Path(f"/proc/{job.child.pid}/stat").read_text().rpartition(")")[2].split()[1])
        await job.child.wait()
        await starter.close()
        return server

    server = asyncio.run(scenario())
    assert not Path(f"/proc/{server}").exists()
