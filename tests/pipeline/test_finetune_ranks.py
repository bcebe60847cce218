"""Teacher correction as processes: ranks that stop together, die, and go on to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_models import finetune_job
from finetuning import correct
from holding import Hold
from launching import pause
from meeting import Meeting
from safetensors.numpy import load_file
from stores import DATA, TEACHER, context, make_store
from tests.support.waiting import until

from compression_pipeline.artifact import Store
from compression_pipeline.config import CONFIG_VARIABLE, ExitClass, FinetuneConfig, FinetuneJob, Parallelism
from compression_pipeline.context import LAUNCH_VARIABLE
from compression_pipeline.megatron.runtime import Runtime

SETTINGS = FinetuneConfig(
    steps=40,
    global_batch_size=8,
    micro_batch_size=2,
    learning_rate=2e-2,
    min_learning_rate=1e-3,
    warmup_steps=3,
    checkpoint_interval=7,
    validation_interval=20,
)


OTHER_LAUNCH = "b" * 32


def job_in(store: Store, attempt: int, **fields: Any) -> FinetuneJob:
    return finetune_job(store=str(store.root), data=DATA, teacher=TEACHER, attempt=attempt, finetune=SETTINGS, **fields)


class Ranks:
    """The processes of one attempt, their output in files."""

    def __init__(
        self, store: Store, folder: Path, attempt: int, count: int, hold_at: int | None, split: dict[str, int]
    ) -> None:
        self.hold = Hold(folder / f"hold-{attempt}-{hold_at}", hold_at) if hold_at else None
        held = self.hold.environment if self.hold else {}
        job = job_in(store, attempt, processes_per_node=count, parallelism=Parallelism(**split))
        self.logs = [folder / f"attempt-{attempt}-rank-{rank}.log" for rank in range(count)]
        self.meeting = Meeting(count)
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank, log in enumerate(self.logs):
            environment = os.environ | held | self.meeting.environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            if rank:  # as on another node, which doesn't know what launch rank 0 belongs to
                environment[LAUNCH_VARIABLE] = OTHER_LAUNCH
            with log.open("wb") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "compression_pipeline.worker", "finetune"],
                        env=environment | {CONFIG_VARIABLE: json.dumps(job.to_json())},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait_for_step(self, step: int) -> None:
        """Until rank 0 has told of `step`, at which it is held."""

        def there() -> bool:
            assert all(process.poll() is None for process in self.processes), self.output()
            return f'"step": {step},' in self.logs[0].read_text()

        until(there, f"rank 0 to tell of step {step}", seconds=540)

    def wait(self) -> list[int]:
        """Exit codes, once all have ended."""
        return [process.wait(timeout=540) for process in self.processes]

    def first_step(self) -> int:
        """The first step that was told of."""
        told = (json.loads(line) for line in self.logs[0].read_text().splitlines() if line.startswith("{"))
        return next(event["step"] for event in told if event["event"] == "progress")

    def output(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


Start = Callable[..., Ranks]


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Starts the ranks of an attempt: (store, attempt, count, split); whatever still runs at the end is killed."""
    started: list[Ranks] = []

    def begin(store: Store, attempt: int, count: int, *, hold_at: int | None = None, **split: int) -> Ranks:
        started.append(Ranks(store, tmp_path, attempt, count, hold_at, split))
        return started[-1]

    yield begin
    for ranks in started:
        ranks.meeting.close()
        for process in ranks.processes:
            process.kill()
            process.wait()


def published(store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    """History without the speed, and weights as bytes."""
    artifact = store.open("finetune-" + "0" * 32)
    history = json.loads((artifact.path / "history.json").read_text())
    for entry in history["train"]:
        del entry["tokensPerSecond"]
    weights = load_file(artifact.model / "model.safetensors")
    return history, {name: weight.tobytes() for name, weight in weights.items()}


def finish(store: Store, attempt: int, engine: Runtime) -> None:
    """The rest of the run, by this process alone."""
    correct(job_in(store, attempt), context(store, attempt=attempt)[0], engine)


def test_a_killed_process_loses_nothing_that_was_saved(tmp_path: Path, start: Start, engine: Runtime) -> None:
    store, reference = make_store(tmp_path / "killed"), make_store(tmp_path / "undisturbed")
    killed = start(store, 1, 1, hold_at=11)
    killed.wait_for_step(11)
    killed.processes[0].send_signal(signal.SIGKILL)
    assert killed.wait() == [-signal.SIGKILL]
    assert "FutureWarning" not in killed.output()
    assert "UserWarning" not in killed.output()
    finish(store, 2, engine)
    finish(reference, 1, engine)
    assert published(store) == published(reference)


@pytest.mark.parametrize(("split", "victim"), [({}, 0), ({"pipeline": 2}, 1)], ids=["copies", "stages"])
def test_two_ranks_killed_and_stopped_end_as_undisturbed_ones(
    split: dict[str, int], victim: int, tmp_path: Path, start: Start, engine: Runtime
) -> None:
    store, reference = make_store(tmp_path / "disturbed"), make_store(tmp_path / "undisturbed")

    undisturbed = start(reference, 1, 2, **split)
    assert undisturbed.wait() == [0, 0], undisturbed.output()
    assert not list(reference.root.glob("work/*/*b*"))  # all is in rank 0's folder

    killed = start(store, 1, 2, hold_at=11, **split)
    killed.wait_for_step(11)
    killed.processes[victim].send_signal(signal.SIGKILL)
    assert killed.hold
    killed.hold.release()
    # A peer's death is a passing fault, noticed by itself, also by who waits for what a stage computes.
    codes = [-signal.SIGKILL if rank == victim else ExitClass.TRANSIENT.code for rank in range(2)]
    assert killed.wait() == codes, killed.output()
    alone = Store(tmp_path / "alone")
    shutil.copytree(store.root, alone.root)

    stopped = start(store, 2, 2, hold_at=16, **split)
    stopped.wait_for_step(16)
    # One rank is told; both stop after the same step.
    stopped.processes[1].send_signal(signal.SIGTERM)
    assert stopped.hold
    stopped.hold.release()
    assert stopped.wait() == [ExitClass.INTERRUPTED.code] * 2, stopped.output()
    lines = [line for log in stopped.logs for line in log.read_text().splitlines() if "SIGTERM" in line]
    assert len(lines) == 2
    assert len({line.split(": ", 1)[1] for line in lines}) == 1
    assert stopped.first_step() == 8  # from the checkpoint of step 7

    resumed = start(store, 3, 2, **split)
    assert resumed.wait() == [0, 0], resumed.output()
    assert resumed.first_step() > 16
    assert published(store) == published(reference)

    # One rank goes on from what two have saved, whichever part each had: from the same state, though not to the last
    # bit, since sums are taken in another order.
    finish(alone, 2, engine)
    found, expected = published(alone)[0]["train"], published(reference)[0]["train"]
    assert found[:7] == expected[:7]
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in expected], rel=1e-3)


def launcher(store: Store, run: str, log: Path, hold: Hold | None = None) -> subprocess.Popen[bytes]:
    """The whole job, as a backend starts it."""
    held = hold.environment if hold else {}
    told = held | {CONFIG_VARIABLE: json.dumps(job_in(store, 1, run=run).to_json())}
    command = [sys.executable, "-m", "compression_pipeline", "finetune"]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, env=os.environ | told, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )


def test_a_paused_job_and_the_one_that_took_over_end_with_one_artifact(tmp_path: Path, engine: Runtime) -> None:
    """Two runs on one store; both are at their first attempt."""
    store, reference = make_store(tmp_path / "shared"), make_store(tmp_path / "undisturbed")
    finish(reference, 1, engine)
    logs = tmp_path / "paused.log", tmp_path / "taker.log"
    hold = Hold(tmp_path / "hold", 11)
    paused = launcher(store, "one", logs[0], hold)
    taker: subprocess.Popen[bytes] | None = None
    try:
        until(lambda: paused.poll() is not None or '"step": 11,' in logs[0].read_text(), "step 11", seconds=540)
        assert paused.poll() is None, logs[0].read_text()
        processes = [paused.pid, *children_of(paused.pid)]
        pause(*processes)
        [heartbeat] = store.root.glob("work/*/heartbeat")
        os.utime(heartbeat, (1, 1))
        taker = launcher(store, "two", logs[1])
        assert taker.wait(540) == 0, logs[1].read_text()
        assert "goes on from step 7 (" in logs[1].read_text()
        hold.release()
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        assert paused.wait(540) == 0, logs[0].read_text()
    finally:
        for process in (paused, taker):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    assert '"cached": true' in logs[0].read_text().splitlines()[-1]
    assert published(store) == published(reference)
    assert not list(store.root.glob(f"work/{0:032}"))


def children_of(pid: int) -> list[int]:
    """The processes that one has started."""
    return [int(word) for file in Path(f"/proc/{pid}/task").glob("*/children") for word in file.read_text().split()]
