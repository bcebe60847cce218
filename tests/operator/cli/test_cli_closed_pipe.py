"""A run that nobody listens to any more goes on to its end, exits by its result, and can be stopped."""

import signal
import subprocess
from pathlib import Path

import pytest
from local_cli import Bench
from local_jobs import running
from tests.support.waiting import until, within

from compression_operator.cli.session import Session
from compression_operator.cli.view import PlainView

SLOW = {"steps": 400, "seconds": 0.02, "until": "/nowhere/go"}


def begun(bench: Bench, step: str) -> bool:
    return any(start.startswith(step) for start in bench.starts())


def listen_and_go(command: subprocess.Popen[str]) -> None:
    """As `head -1`."""
    assert command.stdout and command.stdout.readline()
    command.stdout.close()


@pytest.mark.parametrize(("fault", "code"), [({}, 0), ({"class": "UserError", "message": "no", "attempts": 1}, 1)])
def test_whoever_reads_may_go(tmp_path: Path, fault: dict[str, object], code: int) -> None:
    bench, go = Bench(tmp_path), tmp_path / "go"
    bench.behave(prepare={"steps": 5, "until": str(go)}, export_depth={"fail": fault})
    with bench.start() as command:
        listen_and_go(command)
        go.touch()
        assert command.wait(240) == code
    assert bench.status()["phase"] == ("Failed" if fault else "Succeeded")


def test_ctrl_c_ends_a_run_that_nobody_reads(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.behave(finetune=SLOW)
    with bench.start() as command:
        listen_and_go(command)
        until(lambda: begun(bench, "finetune"), "finetune to begin")
        command.send_signal(signal.SIGINT)
        assert command.wait(240) == 130
    assert bench.status()["phase"] == "Suspended"
    assert not any(running(pid) for pid in bench.pids())


def test_a_full_disk_under_the_output_ends_nothing(tmp_path: Path) -> None:
    bench, errors = Bench(tmp_path), tmp_path / "errors"
    with Path("/dev/full").open("w") as full, errors.open("w") as stderr:
        ended = subprocess.run(bench.command(), stdout=full, stderr=stderr, timeout=240, check=False)
    assert (ended.returncode, errors.read_text()) == (0, "")
    assert bench.status()["phase"] == "Succeeded"


def test_a_view_that_breaks_ends_the_command_instead_of_its_work_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, run, say = Bench(tmp_path), Session.run, PlainView.print_line
    bench.behave(prepare=SLOW)

    def broken(view: PlainView, text: str) -> None:
        if begun(bench, "prepare"):
            raise ValueError(f"cannot show {text}")
        say(view, text)

    monkeypatch.setattr(PlainView, "print_line", broken)
    monkeypatch.setattr(Session, "run", lambda session: within(run(session), "the session to end"))
    with pytest.raises(ValueError, match="cannot show"):
        bench.run()
    assert bench.pids() and not any(running(pid) for pid in bench.pids())
