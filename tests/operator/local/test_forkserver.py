"""Jobs that a fork server starts behave as those that are programs of their own. The launcher is the real one."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from local_jobs import Local, a_job, a_run
from tests.support.waiting import until, until_async

from compression_operator.core.jobs import JobState
from compression_operator.local import machine, processes
from compression_operator.local.backend import COMMAND
from compression_operator.local.forkserver import ForkedJob
from compression_operator.local.processes import ProcessId
from compression_operator.local.starting import Child, Starter
from compression_pipeline.config import TERMINATION_VARIABLE, ExitClass, Phase
from compression_pipeline.launcher.heartbeat import Heartbeat

FINGERPRINT = "0123456789abcdef" * 2
FAILS = """
from compression_pipeline.errors import UserError

def run(job, context):
    raise UserError("nothing to report")
"""
WAITS = """
import time

def run(job, context):
    print("rank runs", flush=True)
    while True:
        context.stop_if_requested()
        time.sleep(0.01)
"""
IMPORTS_FOR_EVER = "import time; time.sleep(3600)"

_SITE = """
import sys, types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec

class Program(MetaPathFinder, Loader):
    def find_spec(self, name, path, target=None):
        ours = name in ("compression_pipeline.phases.finetune", "compression_pipeline.phases.report")
        return ModuleSpec(name, self) if ours else None

    def exec_module(self, module):
        exec(SOURCE, module.__dict__)

sys.meta_path.insert(0, Program())
"""


@dataclass
class Started:
    """A job of the phase report whose program is the test's."""

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
        return marked(self.folder)

    async def says(self, words: str) -> None:
        await asyncio.to_thread(until, lambda: words in self.log, lambda: f"{words} in {self.log}")


def marked(folder: Path) -> list[int]:
    return [found.pid for found in processes.marked(f"{TERMINATION_VARIABLE}={folder / 'termination'}")]


def write_site(folder: Path, program: str) -> None:
    """A folder for PYTHONPATH that puts this program in the place of two phases'."""
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "sitecustomize.py").write_text(f"SOURCE = {program!r}\n{_SITE}")


async def start(
    starter: Starter, folder: Path, program: str = FAILS, *, ranks: int = 1, gpus: tuple[str, ...] = ()
) -> Started:
    write_site(folder, program)
    config = {"run": "demo", "step": "report-a", "fingerprint": FINGERPRINT, "store": str(folder.parent / "store")}
    config |= {"attempt": 1, "gracePeriodSeconds": 300}
    config |= {role: f"{role}-x" for role in ("data", "teacher", "pruned", "distilled", "exported", "evaluated")}
    environment = machine.environment(
        {**os.environ, "PYTHONPATH": str(folder / "site")},
        Phase.REPORT,
        config=json.dumps(config),
        termination=folder / "termination",
        gpus=gpus,
    )
    with (folder / "log").open("ab") as log:
        child = await starter.start(Phase.REPORT, environment, log, ranks=ranks, gpus=gpus)
    assert child is not None
    return Started(folder, child)


def held(folder: Path) -> None:
    """Keep the step, as a job of another run would, until the test ends."""
    store = folder / "store"
    probe = store / "probe"
    probe.mkdir(parents=True)
    assert Heartbeat(store / "work" / FINGERPRINT, "other/report-a/1", token="other", probe=probe).claim() is None  # noqa: S106


async def waiting(starter: Starter, folder: Path) -> Started:
    """A job whose launcher waits for the step that is held."""
    job = await start(starter, folder)
    await job.says("waits for other/report-a/1")
    return job


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


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
        assert ended[0][0] == ExitClass.USER_ERROR.code and '"rank": 0' in ended[0][2], ended[0]
        assert "nothing to report" in ended[0][1]

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
        one, other = [await waiting(starter, tmp_path / name) for name in ("one", "other")]
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
        job = await waiting(starter, tmp_path / "one")
        server = parent_of(job.child.pid)
        assert "forkserver" in Path(f"/proc/{server}/cmdline").read_text()
        os.kill(server, signal.SIGKILL)
        ended = asyncio.create_task(job.child.wait())
        later = await waiting(starter, tmp_path / "two")
        assert not isinstance(later.child, ForkedJob)
        assert not ended.done() and job.processes == [job.child.pid]
        job.child.terminate()
        assert await ended is None and job.termination["class"] == ExitClass.INTERRUPTED
        later.child.terminate()
        assert await later.child.wait() == ExitClass.INTERRUPTED.code
        await starter.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_the_server_ends_with_who_started_it(tmp_path: Path, how: str) -> None:
    """Killed: only what the kernel closes tells the server then."""
    held(tmp_path)
    code = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from test_forkserver import COMMAND, Starter, parent_of, waiting\n"
        "async def scenario():\n"
        "    starter = Starter(COMMAND, fork=True)\n"
        "    job = await waiting(starter, Path(sys.argv[1]))\n"
        "    print(job.child.pid, parent_of(job.child.pid), flush=True)\n"
        "    if sys.argv[2] == 'killed':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    job.child.terminate()\n"
        "    await job.child.wait()\n"
        "    await starter.close()\n"
        "asyncio.run(scenario())\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "job"), how],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=how == "closed",
    )
    job, server = map(int, done.stdout.split())
    for pid in (job, server):
        until(lambda pid=pid: ProcessId.of(pid) is None, f"the end of {pid}")
    assert json.loads((tmp_path / "job" / "termination").read_text())["class"] == ExitClass.INTERRUPTED


def test_a_rank_hears_a_signal_that_comes_at_once(tmp_path: Path) -> None:
    """Before it has taken the launcher's handlers off, too; and it has its group by then."""
    code = (
        "import os, signal, sys, time, types\n"
        "from compression_pipeline.config import Phase\n"
        "from compression_pipeline.launcher.forked_rank import ForkedRank\n"
        "from compression_pipeline.launcher.signals import Signals\n"
        "worker = types.ModuleType('compression_pipeline.worker')\n"
        "worker.work = lambda arguments: time.sleep(3600)\n"
        "sys.modules[worker.__name__] = worker\n"
        "signals = Signals({})\n"
        "for _ in range(40):\n"
        "    rank = ForkedRank(Phase.REPORT, dict(os.environ))\n"
        "    rank.send_signal(signal.SIGTERM)\n"
        "    assert rank.wait() == -signal.SIGTERM\n"
        "    rank = ForkedRank(Phase.REPORT, dict(os.environ))\n"
        "    os.killpg(rank.pid, signal.SIGKILL)\n"
        "    assert rank.wait() == -signal.SIGKILL\n"
        "assert not signals.stopping\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_rank_that_cannot_begin_says_why(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from compression_pipeline.config import Phase\n"
        "from compression_pipeline.launcher.forked_rank import ForkedRank\n"
        "sys.modules['compression_pipeline.worker'] = None\n"
        "sys.exit(ForkedRank(Phase.REPORT, dict(os.environ)).wait())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr, done.stderr


def test_a_stopped_job_stops_its_forked_rank(tmp_path: Path) -> None:
    async def scenario() -> None:
        starter = Starter(COMMAND, fork=True)
        job = await start(starter, tmp_path / "job", WAITS)
        await job.says("rank runs")
        assert len(job.processes) == 2
        job.child.terminate()
        assert await job.child.wait() == ExitClass.INTERRUPTED.code
        assert not job.processes
        await starter.close()

    asyncio.run(scenario())


def test_a_job_that_is_given_up_in_its_imports_never_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        starter = Starter(COMMAND, fork=True)
        importing = asyncio.create_task(start(starter, tmp_path / "job", IMPORTS_FOR_EVER))
        await until_async(lambda: asyncio.sleep(0.1, bool(servers(tmp_path))), "the server to import")
        importing.cancel()
        starter.kill()
        with pytest.raises(asyncio.CancelledError):
            await importing
        await starter.close()
        assert not servers(tmp_path) and not marked(tmp_path / "job")

    asyncio.run(scenario())


def test_a_backend_goes_on_while_a_job_is_imported_and_can_be_killed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_site(tmp_path / "job", IMPORTS_FOR_EVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "job" / "site"))

    async def scenario() -> None:
        here, run = Local(tmp_path, command=COMMAND), a_run()
        job = a_job(run)
        await here.backend.create(run, job)
        await until_async(lambda: asyncio.sleep(0.1, bool(servers(tmp_path))), "the server to import")
        seen = await here.job(run, job.name)
        assert seen is not None and seen.alive and seen.state is JobState.PENDING
        here.backend.kill()
        await here.backend.create(run, a_job(run, attempt=2))  # of the pass that was under way
        await here.backend.close()
        assert not servers(tmp_path)
        assert not processes.marked(f"{TERMINATION_VARIABLE}={here.jobs / job.name / 'termination'}")
        assert not (here.jobs / a_job(run, attempt=2).name / "process.json").exists()

    asyncio.run(scenario())


def servers(folder: Path) -> list[int]:
    """The fork servers that were started with this folder's site."""
    return [found.pid for found in processes.marked(f"PYTHONPATH={folder / 'job' / 'site'}")]


def test_answers_go_to_those_who_asked(tmp_path: Path) -> None:
    """Though one that asked before gave up: its job, which comes nevertheless, is ended."""

    async def scenario() -> None:
        held(tmp_path)
        starter = Starter(COMMAND, fork=True)
        given_up = asyncio.create_task(start(starter, tmp_path / "given-up"))
        await until_async(lambda: asyncio.sleep(0.01, (tmp_path / "given-up" / "log").exists()), "the first to ask")
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        job = await waiting(starter, tmp_path / "job")
        assert job.processes == [job.child.pid]
        await asyncio.to_thread(until, lambda: not marked(tmp_path / "given-up"), "the job given up to end")
        job.child.terminate()
        assert await job.child.wait() == ExitClass.INTERRUPTED.code
        await starter.close()

    asyncio.run(scenario())


def test_a_phase_that_reads_sources_is_no_fork(tmp_path: Path) -> None:
    async def scenario() -> None:
        starter = Starter(COMMAND, fork=True)
        environment = {**os.environ, TERMINATION_VARIABLE: str(tmp_path / "termination")}
        with (tmp_path / "log").open("ab") as log:
            child = await starter.start(Phase.PREPARE, environment, log, ranks=1, gpus=())
        assert child is not None and not isinstance(child, ForkedJob)
        assert await child.wait() == ExitClass.USER_ERROR.code  # it has no configuration
        await starter.close()

    asyncio.run(scenario())
