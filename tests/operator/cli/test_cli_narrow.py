"""A terminal of 80 columns: every state, figure and message can be read there."""

import os
import pty
import re
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from local_cli import Bench
from local_jobs import a_run, now

from compression_operator.api.attempts import Progress
from compression_operator.api.run import CompressionRun
from compression_operator.api.status import Step, StepState, StudentStatus, ValidationLoss
from compression_operator.cli import plan
from compression_operator.cli.summary import print_students
from compression_operator.cli.view import LiveView
from compression_pipeline.config import Phase, Verdict

FIGURES = ["1,082,112,000", "60.0%", "4.0000", "3.8000", "4.8000", "3.9000", "90.0%", "123,456", "1.0625"]


def with_status(**status: object) -> CompressionRun:
    run = a_run()
    return run.model_copy(update={"status": run.status.model_copy(update=status)})


def student(name: str) -> StudentStatus:
    return StudentStatus(
        name=name,
        parameters=1_082_112_000,
        compression_ratio=0.6,
        validation_loss=ValidationLoss(teacher=4.0, corrected_teacher=3.8, pruned=4.8, distilled=3.9),
        tokens_per_second=123456.0,
        figures={"weigh.bitsPerByte": 1.0625},
    )


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("width", [80, 109, 110, 129, 130, 140])
def test_the_results_are_whole(count: int, width: int) -> None:
    from rich.console import Console

    names = [f"student-{number}" for number in range(count)]
    out = StringIO()
    print_students(Console(file=out, width=width), with_status(students=[student(name) for name in names]))
    shown = out.getvalue()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= width
    assert all(shown.count(figure) == count for figure in FIGURES)
    assert all(name in shown for name in names)
    assert "weigh.bitsPerByte" in shown and "loss: teacher" in shown and "recovered" in shown


@pytest.mark.parametrize("width", [80, 140])
def test_whether_a_student_meets_its_gate_is_in_the_table(width: int) -> None:
    from rich.console import Console

    met = Verdict(criterion="maxValidationLoss", limit=4, measured=3.9, met=True)
    missed = met.model_copy(update={"limit": 3.5, "met": False})
    gates = {"good": [met], "poor": [met, missed], "open": [met.model_copy(update={"met": None})], "free": None}
    out = StringIO()
    students = [student(name).model_copy(update={"gate": gate, "figures": None}) for name, gate in gates.items()]
    print_students(Console(file=out, width=width), with_status(students=students))
    shown = out.getvalue()
    assert "accepted" in shown and (shown.count("yes"), shown.count("no ")) == (1, 1)
    out = StringIO()
    print_students(Console(file=out, width=width), with_status(students=[student("free")]))
    assert "accepted" not in out.getvalue()


@pytest.mark.parametrize("name", ["width", "a-student-with-the-longest-name-that-one-may-give-it"])
@pytest.mark.parametrize("width", [80, 110, 140])
def test_the_live_table_is_whole(name: str, width: int) -> None:
    from rich.console import Console

    progress = Progress(step=3, total_steps=10, loss=3.8125, tokens_per_second=123456.0, eta_seconds=7620)
    common = {"phase": Phase.DISTILL, "student": name}
    cut = len(name) > 10
    steps = [
        Step(name=f"distill-{name}", state=StepState.RUNNING, progress=progress, start_time=now(), **common),
        Step(name="distill-b", state=StepState.FAILED, message="the learning rate is far too high for it", **common),
    ]
    out = StringIO()
    view = LiveView(Console(file=out, width=width), now=now, cached=lambda _: False, resumed=lambda _: True)
    view.update(with_status(steps=steps))
    view.close()
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    for word in ("distill", "running", "failed", "3.812", "123,456", "2h07m", "━", "resumed"):
        assert word in shown
    assert "the learning rate is far too high for it" in " ".join(shown.split())
    assert cut or "…" not in shown


def test_a_plan_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    out, bench = StringIO(), Bench(tmp_path)
    monkeypatch.setattr(plan, "console", lambda: Console(file=out, width=80))
    assert bench.call("plan", bench.file, "--workdir", bench.workdir) == 0
    shown = out.getvalue()
    assert "…" not in shown and "activations" in shown and "GPU hours at 40%" in shown


def test_a_run_in_a_terminal_of_80_columns(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    shown = ""
    with subprocess.Popen(bench.command(), stdout=theirs, stderr=theirs, env=environment) as run:
        os.close(theirs)
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            shown += more.decode(errors="replace")
    os.close(ours)
    assert run.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "…" not in plain.partition("succeeded in")[0]
    for figure in ("600,000", "60.0%", "4.0000", "3.8000", "4.8000", "3.9500", "85.0%"):
        assert len(re.findall(rf"{re.escape(figure)} ", plain)) >= 2, f"{figure} of both students"
