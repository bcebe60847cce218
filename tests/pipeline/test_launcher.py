"""How a job ends: every way that a rank can go, told by exit code and termination message, and nothing left running."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import FINGERPRINT, NAME, PUBLISH, Launch, alive, pause
from tests.support.waiting import until

from compression_pipeline.artifact import Store
from compression_pipeline.launcher import heartbeat

WAIT_FOR_STOP = """
def run(job, context):
    (here / f"started-{rank}").write_text(str(os.getpid()))
    while not context.stop_requested():
        time.sleep(0.01)
    from compression_pipeline.errors import Interrupted
    raise Interrupted("stopped at step 7")
"""

DEAF = """
def run(job, context):
    (here / "started-0").write_text(str(os.getpid()))
    while True:
        time.sleep(0.01)
"""


def started(folder: Path, rank: int = 0) -> int:
    """The process of a rank, once it runs its phase."""
    path = folder / f"started-{rank}"
    until(lambda: path.exists() and path.read_text() != "", f"rank {rank} started")
    return int(path.read_text())


def test_a_phase_is_run_once_and_then_adopted(launch: Launch) -> None:
    first = launch(PUBLISH)
    assert first.wait() == 0, first.errors
    assert first.termination == {"class": "Done", "message": "", "result": {"parameters": 7}}
    assert [event["result"] for event in first.events("result")] == [{"parameters": 7}]
    assert not launch.heartbeat.parent.exists()  # so nobody waits for it

    second = launch("def run(job, context):\n    raise RuntimeError('must not run')", attempt=2)
    assert second.wait() == 0, second.errors
    assert second.termination["result"] == launch.adopted
    assert [event["result"] for event in second.events("result")] == [launch.adopted]


def test_a_cached_step_imports_nothing_heavy(launch: Launch) -> None:
    assert launch(PUBLISH).wait() == 0
    cached = launch(PUBLISH, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    assert cached.wait() == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in cached.errors.splitlines()}
    assert "compression_pipeline" in imported
    assert not imported & {"torch", "numpy", "transformers", "megatron", "modelopt", "huggingface_hub", "pyarrow"}


@pytest.mark.parametrize(
    ("fault", "code", "name", "message"),
    [
        ("from compression_pipeline.errors import UserError; raise UserError('mend it')", 64, "UserError", "mend it"),
        ("from compression_pipeline.errors import TransientError as T; raise T('again')", 75, "Transient", "again"),
        ("raise ValueError('first line\\nlast line')", 64, "UserError", "ValueError: last line at "),
        (
            "raise type('OutOfMemoryError', (RuntimeError,), {'__module__': 'torch'})('tried to allocate 2 GiB')",
            64,
            "UserError",
            "the GPU is out of memory (tried to allocate 2 GiB); lower microBatchSize or sequenceLength, or use more "
            "GPUs; where it scored by tasks (distill.taskInterval, target.rank: Task), which takes a second copy ",
        ),
        ("open('/dev/full', 'w').write('x' * 100000)", 64, "UserError", "the disk is full; free some space"),
        ("sys.exit(3)", 64, "UserError", "SystemExit: 3 at "),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            75,
            "Transient",
            "rank 0 was killed (SIGKILL), most likely by the kernel",
        ),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 75, "Transient", "rank 0 died without a word (signal 11)"),
        ("os._exit(1)", 75, "Transient", "rank 0 died without a word (exit code 1)"),
    ],
)
def test_a_fault_ends_in_its_class_and_a_sentence(
    launch: Launch, fault: str, code: int, name: str, message: str
) -> None:
    launched = launch(f"def run(job, context):\n    {fault}")
    assert launched.wait() == code, launched.errors
    assert launched.termination["class"] == name
    assert launched.termination["message"].startswith(message)
    assert launched.termination["rank"] == 0
    assert f"prune: {name}: {message}" in launched.errors
    assert not launch.heartbeat.exists()


def test_sigterm_reaches_the_rank_and_its_checkpoint_is_waited_for(launch: Launch) -> None:
    launched = launch(WAIT_FOR_STOP)
    started(launch.folder)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.wait() == 143
    assert launched.termination["class"] == "Interrupted"
    assert launched.termination["message"] == "was told to stop (SIGTERM)"


@pytest.mark.parametrize("told", ["os.kill(os.getpid(), signal.SIGTERM)", "sys.stdin.read()"])
def test_who_is_told_to_stop_while_inputs_are_checked_starts_no_rank(launch: Launch, told: str) -> None:
    checks = f"""
import os, signal, sys
from compression_pipeline.launcher import main as launcher
launcher._Launcher._check_inputs = lambda self, adoption: {told}
launcher.Ranks = None  # who started any would fail
sys.exit(launcher.main(["prune"]))
"""
    with_parent = {"COMPRESSION_EXIT_WITH_PARENT": "1"}
    launched = launch("", command=("-c", checks), environment=with_parent)
    if "stdin" in told and launched.process.stdin is not None:
        launched.process.stdin.close()
        launched.process.stdin = None
    assert launched.wait() == 143, launched.errors
    assert launched.termination["class"] == "Interrupted"
    assert launched.termination["message"] in ("was told to stop (SIGTERM)", "the process that started it is gone")
    assert not launch.heartbeat.exists()


def test_a_rank_that_finishes_in_spite_of_sigterm_is_done(launch: Launch) -> None:
    launched = launch(
        """
        def run(job, context):
            (here / "started-0").write_text(str(os.getpid()))
            while not context.stop_requested():
                time.sleep(0.01)
            publish(job, context, {"parameters": 7})
            return Result(parameters=7)
        """
    )
    started(launch.folder)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.wait() == 0
    assert launched.termination["result"] == {"parameters": 7}


def test_a_deaf_rank_is_killed_after_the_grace_period(launch: Launch) -> None:
    launched = launch(DEAF, gracePeriodSeconds=1)
    pid = started(launch.folder)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.wait() == 143
    assert "within the grace period" in launched.termination["message"]
    assert not alive(pid)


def test_the_end_of_its_parent_stops_it_where_it_was_told_to(launch: Launch) -> None:
    launched = launch(WAIT_FOR_STOP, environment={"COMPRESSION_EXIT_WITH_PARENT": "1"})
    pid = started(launch.folder)
    assert launched.process.stdin is not None
    launched.process.stdin.close()
    launched.process.stdin = None
    assert launched.wait() == 143
    assert launched.termination["message"] == "the process that started it is gone"
    assert not alive(pid)


def test_a_closed_stdin_means_nothing_else(launch: Launch) -> None:
    launched = launch("def run(job, context):\n    time.sleep(0.5)\n    return Result(parameters=1)")
    assert launched.process.stdin is not None
    launched.process.stdin.close()
    launched.process.stdin = None
    assert launched.wait() == 0


def test_ranks_die_with_a_killed_launcher(launch: Launch) -> None:
    launched = launch(DEAF)
    pid = started(launch.folder)
    launched.process.kill()
    until(lambda: not alive(pid), "the rank is gone")


def test_nothing_that_a_rank_started_outlives_the_job(launch: Launch) -> None:
    launched = launch(
        """
        def run(job, context):
            import subprocess
            child = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
            (here / "child").write_text(str(child.pid))
            return Result(parameters=1)
        """
    )
    assert launched.wait() == 0
    assert not alive(int((launch.folder / "child").read_text()))


def test_a_port_that_is_taken_meanwhile_is_changed(launch: Launch) -> None:
    launched = launch(
        """
        def run(job, context):
            import socket
            port = int(os.environ["MASTER_PORT"])
            seen = sorted(here.glob("port-*"))
            (here / f"port-{len(seen)}-{port}").touch()
            with socket.socket() as one, socket.socket() as other:
                if not seen:
                    one.bind(("127.0.0.1", port))
                    one.listen()
                try:
                    other.bind(("127.0.0.1", port))
                except OSError as error:
                    raise RuntimeError("The server socket has failed to listen") from error
            return Result(parameters=1)
        """
    )
    assert launched.wait() == 0, launched.errors
    ports = sorted(path.name for path in launch.folder.glob("port-*"))
    assert len(ports) == 2
    assert "the port of the ranks was taken" in launched.events("warning")[0]["message"]


def test_ranks_write_where_the_launcher_writes_unchanged(launch: Launch) -> None:
    line = "not an event: {} ü"
    launched = launch(f"def run(job, context):\n    print({line!r})\n    sys.stderr.write('e\\n')\n    return Result()")
    assert launched.wait() == 0
    assert line in launched.output.splitlines()
    assert "e" in launched.errors.splitlines()


def test_leftovers_of_a_killed_attempt_are_removed(launch: Launch) -> None:
    old = Store(launch.store).attempt_folder(FINGERPRINT, 1) / f"draft-{NAME}-x"
    old.mkdir()
    assert launch(PUBLISH, attempt=2).wait() == 0
    assert not old.exists()


TRAIN = """
def run(job, context):
    for folder in (context.folder / "checkpoints" / "step-00000004", context.folder / "order"):
        folder.mkdir(parents=True)
        (folder / "file").touch()
"""


def test_what_a_job_worked_with_stays_until_its_artifact_is_published(launch: Launch) -> None:
    interrupted = launch(TRAIN + "    raise __import__('compression_pipeline').errors.Interrupted('stopped')")
    assert interrupted.wait() == 143, interrupted.errors
    assert len(list(launch.heartbeat.parent.glob("1-*/checkpoints/step-00000004/file"))) == 1
    assert launch(TRAIN + PUBLISH.split("):")[1], attempt=2).wait() == 0
    assert not launch.heartbeat.parent.exists()
    assert Store(launch.store).find(NAME) is not None


def test_what_a_job_left_that_was_killed_after_it_published_is_removed(launch: Launch) -> None:
    assert launch(PUBLISH).wait() == 0
    (Store(launch.store).attempt_folder(FINGERPRINT, 1, "ab") / "checkpoints").mkdir()
    assert launch(PUBLISH, attempt=2).wait() == 0
    assert not launch.heartbeat.parent.exists()


def test_a_job_that_only_waited_leaves_nothing(launch: Launch) -> None:
    first = launch(WAIT_FOR_STOP)
    started(launch.folder)
    second = launch(PUBLISH, run="other")
    until(lambda: len(list(launch.heartbeat.parent.glob("1-*"))) == 2, "the second waits")
    second.process.send_signal(signal.SIGTERM)
    assert second.wait() == 143
    assert len(list(launch.heartbeat.parent.glob("1-*"))) == 1
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 143
    assert not launch.heartbeat.parent.exists()


def test_a_second_job_waits_and_adopts(launch: Launch) -> None:
    first = launch(
        """
        def run(job, context):
            (here / "started-0").write_text(str(os.getpid()))
            while not (here / "go").exists():
                time.sleep(0.01)
            publish(job, context, {"parameters": 7})
            return Result(parameters=7)
        """,
        runUid="7a3f",
    )
    started(launch.folder)
    held_by = heartbeat.holder(launch.heartbeat.parent)
    assert held_by is not None
    assert (
        held_by.job == "r/prune-width/1/7a3f"
    )  # the nodes of a run of the same name elsewhere don't take it for theirs
    second = launch("def run(job, context):\n    raise RuntimeError('must not run')", run="other")
    assert second.process.stdout is not None
    line = json.loads(second.process.stdout.readline())
    assert "waits for r/prune-width/1" in line["message"]
    assert "which makes the same artifact" in line["message"]
    (launch.folder / "go").touch()
    assert first.wait() == 0
    assert second.wait() == 0, second.errors
    assert second.termination["result"] == launch.adopted


def test_a_job_that_was_paused_adopts_what_was_published_meanwhile(launch: Launch) -> None:
    """A node hangs for longer than a heartbeat may; another run takes the step over and ends it."""
    paused = launch(
        WAIT_FOR_STOP.replace("    from", "    (context.folder / 'checkpoints').mkdir(parents=True)\n    from")
    )
    rank = started(launch.folder)
    pause(rank, paused.process.pid)
    os.utime(launch.heartbeat, (1, 1))
    taker = launch(PUBLISH, run="other")
    assert taker.wait() == 0, taker.errors
    for pid in (rank, paused.process.pid):
        os.kill(pid, signal.SIGCONT)
    assert paused.wait() == 0, paused.errors
    assert paused.termination["result"] == launch.adopted
    assert not launch.heartbeat.parent.exists()


def test_a_waiting_job_can_be_stopped(launch: Launch) -> None:
    launch(DEAF)
    started(launch.folder)
    second = launch(PUBLISH, attempt=2)
    assert second.process.stdout is not None
    second.process.stdout.readline()
    second.process.send_signal(signal.SIGTERM)
    assert second.wait() == 143
    assert launch.heartbeat.exists()  # the first job's


def test_after_a_killed_job_nobody_waits(launch: Launch) -> None:
    first = launch(DEAF)
    started(launch.folder)
    first.process.kill()
    first.wait()
    assert launch.heartbeat.exists()
    second = launch(PUBLISH, attempt=2)
    assert second.wait() == 0
    assert second.events("info") == []


def test_bad_calls_are_user_errors(tmp_path: Path) -> None:
    config = {"run": "r", "step": "s", "attempt": 1, "fingerprint": "short", "store": "/nowhere"}
    newer = config | {"fingerprint": "0" * 32, "data": "d", "teacher": "t", "sequenceLength": 64}
    newer |= {"prune": {"layers": 2, "spice": "hot"}}
    for arguments, environment, message in (
        ([], {}, "usage: python -m compression_pipeline PHASE, one of prepare, tasks, finetune"),
        (["bake"], {}, "usage: python -m compression_pipeline PHASE"),
        (["prune"], {"COMPRESSION_CONFIG": ""}, "the environment variable COMPRESSION_CONFIG is missing"),
        (["prune"], {"COMPRESSION_CONFIG": "{"}, "COMPRESSION_CONFIG: the whole: Invalid JSON"),
        (["prune"], {"COMPRESSION_CONFIG": json.dumps(config)}, "COMPRESSION_CONFIG: fingerprint: String should match"),
        (
            ["prune"],
            {"COMPRESSION_CONFIG": json.dumps(newer)},
            "COMPRESSION_CONFIG: prune.spice: this image does not know it, so it is older than the operator: set "
            "spec.jobTemplate.image to a newer one",
        ),
    ):
        path = tmp_path / "termination.json"
        told = os.environ | {"COMPRESSION_TERMINATION_MESSAGE": str(path)} | environment
        done = subprocess.run(
            [sys.executable, "-m", "compression_pipeline", *arguments],
            env=told,
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 64, done.stderr
        termination = json.loads(path.read_text())
        assert termination["class"] == "UserError"
        assert termination["message"].startswith(message)
        assert "Traceback" not in done.stderr


def test_a_read_only_store_is_a_user_error(launch: Launch) -> None:
    launched = launch(PUBLISH, store="/sys/compression-store")
    assert launched.wait() == 64
    assert "the store /sys/compression-store can't be written" in launched.termination["message"]


def test_an_unwritable_termination_message_does_not_change_the_exit_code(launch: Launch) -> None:
    launched = launch(PUBLISH, environment={"COMPRESSION_TERMINATION_MESSAGE": "/sys/nowhere"})
    assert launched.wait() == 0
