"""Bad moments for `compression run`, in processes of their own: Ctrl-C once and twice, kill -9, two at once."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_cli import Bench
from local_jobs import running
from tests.support.waiting import until

from compression_operator.cli.view import PlainView

SLOW = {"steps": 400, "seconds": 0.02, "until": "/nowhere/go"}
"""Under way until the test ends it; `{**SLOW, "until": file}` until that file is there."""


def reached(bench: Bench, step: str) -> bool:
    """Whether the run has seen the step get somewhere."""
    try:
        return (bench.steps()[step].get("progress") or {"step": 0})["step"] >= 3
    except (FileNotFoundError, KeyError):
        return False


def first_progress(bench: Bench, step: str, attempt: int) -> int:
    job = bench.steps()[step]["jobName"]
    assert job.endswith(f"-{attempt}")
    match = re.search(r'"progress".*?"step": (\d+)', (bench.workdir / "jobs" / job / "log").read_text())
    assert match
    return int(match[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_writes_checkpoints_and_goes_on_from_them(tmp_path: Path, number: signal.Signals) -> None:
    bench = Bench(tmp_path)
    bench.behave(distill_width=SLOW, distill_depth=SLOW)
    with bench.start() as command:
        until(lambda: reached(bench, "distill-width"), "distill-width to run")
        command.send_signal(number)
        printed, _ = command.communicate(timeout=240)
    assert command.returncode == 130
    assert "stopping: running steps write a checkpoint" in printed
    assert f"interrupted; resume from the last checkpoint with: compression run {bench.file}" in printed
    assert not any(running(pid) for pid in bench.pids())
    assert bench.status()["phase"] == "Suspended"
    bench.behave()
    assert bench.run() == 0
    assert [start for start in bench.starts() if start.startswith("distill-width")] == [
        "distill-width 1",
        "distill-width 2",
    ]
    assert bench.starts().count("finetune 1") == 1 and "finetune 2" not in bench.starts()
    assert bench.steps()["distill-width"]["failures"] == 0


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.behave(distill_width=SLOW)
    with bench.start() as command:
        until(lambda: reached(bench, "distill-width"), "distill-width to run")
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=240)
    bench.behave(distill_width={"steps": 400, "seconds": 0})
    assert bench.run() == 0
    assert first_progress(bench, "distill-width", 2) >= 4


def test_ctrl_c_twice_stops_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, phases={"finetune": {"terminationGracePeriodSeconds": 3600}})
    bench.behave(finetune={**SLOW, "ignore_sigterm": True})
    with bench.start() as command:
        until(lambda: reached(bench, "finetune"), "finetune to run")
        command.send_signal(signal.SIGINT)
        until(
            (bench.store / "told-to-stop").exists, "the job to be told to stop"
        )  # before that a second signal might be one with the first
        assert command.poll() is None, "it waits for the checkpoint"
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=240)
    assert command.returncode == 130
    assert not any(running(pid) for pid in bench.pids())


def test_kill_9_leaves_no_orphans_and_the_next_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.behave(distill_width=SLOW, distill_depth=SLOW)
    with bench.start() as command:
        until(lambda: reached(bench, "distill-width") and reached(bench, "distill-depth"), "both distillations to run")
        command.kill()
    until(lambda: not any(running(pid) for pid in bench.pids()), "all jobs to end")
    assert bench.call("status", "--workdir", bench.workdir) == 0
    shown = capsys.readouterr().out
    headline = f"(nothing is running; continue with: compression run {bench.file} --workdir {bench.workdir})"
    assert shown.splitlines()[0] == f"demo: Distilling {headline}"
    assert re.search(r"distill-width +stopped +\d+/400", shown) and "running " not in shown.partition("\n")[2]
    go = tmp_path / "go"
    bench.behave(distill_width={"steps": 400, "seconds": 0, "until": str(go)}, distill_depth={"steps": 400})
    say = PlainView.print_line

    def said(view: PlainView, text: str) -> None:
        say(view, text)
        if text.startswith("distill-width: ") and text.endswith("(resumed)"):
            go.touch()

    monkeypatch.setattr(PlainView, "print_line", said)
    assert bench.run() == 0
    printed = capsys.readouterr().out
    assert go.exists() and "(attempt" not in printed
    attempts = [start for start in bench.starts() if start.startswith("distill-width")]
    assert attempts == ["distill-width 1", "distill-width 2"]
    assert bench.steps()["distill-width"]["failures"] == 0, "an interruption does not count"


def test_kill_9_and_again_before_the_jobs_have_ended(tmp_path: Path) -> None:
    """Never two jobs for one step: the second command waits for what the first left behind."""
    bench, go = Bench(tmp_path, phases={"finetune": {"terminationGracePeriodSeconds": 3600}}), tmp_path / "go"
    bench.behave(finetune={"steps": 10, "until": str(go), "ignore_sigterm": True})
    with bench.start() as command:
        until(lambda: reached(bench, "finetune"), "finetune to run")
        command.kill()
    [_, orphan] = bench.pids()
    assert running(orphan)
    with bench.start() as second:
        assert second.stdout
        assert any(re.search(r"finetune: \d+/10", line) for line in second.stdout)
        go.touch()
        second.communicate(timeout=240)
    assert second.returncode == 0
    assert "finetune 2" not in bench.starts(), "the orphan came to its end, and its result was taken"


def test_a_second_command_says_who_works_here(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.behave(prepare=SLOW)
    with bench.start() as command:
        until(lambda: reached(bench, "prepare"), "prepare to run")
        with bench.start() as second:
            printed, _ = second.communicate(timeout=240)
        assert second.returncode == 2
        assert printed == (
            f"{bench.workdir} is in use by process {command.pid}; wait for it, stop it, or use another --workdir\n"
        )
        # Nor does it lead the first one's store elsewhere.
        with bench.start("--store", tmp_path / "elsewhere") as third:
            third.communicate(timeout=240)
        assert third.returncode == 2
        assert not (tmp_path / "elsewhere").exists() and not bench.store.is_symlink()
        # Looking is no fighting.
        assert bench.call("status", "--workdir", bench.workdir) == 0
        assert bench.call("logs", "prepare", "--workdir", bench.workdir) == 0
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=240)


def test_following_a_log_ends_with_the_step(tmp_path: Path) -> None:
    bench, go = Bench(tmp_path), tmp_path / "go"
    bench.behave(prepare={"steps": 50, "until": str(go)})
    follow = [sys.executable, Path(__file__).parents[1] / "support" / "local_cli.py", bench.behaviour]
    follow += ["logs", "prepare", "-f", "--workdir", bench.workdir]
    with bench.start() as command:
        until(lambda: reached(bench, "prepare"), "prepare to run")
        with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout
            lines = [following.stdout.readline()]
            go.touch()
            lines += list(following.stdout)
        command.communicate(timeout=240)
    assert (command.returncode, following.returncode) == (0, 0)
    assert "step 1/50" in lines[0] and "step 50/50" in lines[-2] and "result:" in lines[-1]


def plain(shown: str) -> str:
    """Without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def test_a_terminal_gets_a_live_table(tmp_path: Path) -> None:
    bench, go = Bench(tmp_path), tmp_path / "go"
    bench.behave(any={"steps": 30}, distill_width={"steps": 30, "until": str(go)})
    ours, theirs = pty.openpty()
    command = [sys.executable, Path(__file__).parents[1] / "support" / "local_cli.py", bench.behaviour]
    with subprocess.Popen(
        [*command, "run", bench.file, "--workdir", bench.workdir],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "130", "LINES": "40"},
    ) as run:
        os.close(theirs)
        shown = ""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    shown += os.read(ours, 65536).decode(errors="replace")
                except OSError:
                    break  # the other end is closed
                if "━" in shown and re.search(r"distill +width +running", plain(shown)):
                    go.touch()
            elif run.poll() is not None:
                break
    os.close(ours)
    assert run.returncode == 0
    assert go.exists() and "tokens/s" in plain(shown)
    assert re.search(r"export +depth +done", plain(shown))
    assert "recovered" in plain(shown) and "succeeded in" in plain(shown)
