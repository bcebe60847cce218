"""What `compression run` says of a step that runs: what it waits for, whether it is resumed or tried again."""

from datetime import timedelta
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from local_cli import REPORT, Bench
from local_jobs import a_run, now

from compression_operator.api.attempts import AttemptRecord, Progress
from compression_operator.api.run import CompressionRun
from compression_operator.api.status import Step, StepState
from compression_operator.cli import report
from compression_operator.cli.view import LiveView, PlainView, attempt_note
from compression_operator.core import steps
from compression_pipeline.config import ExitClass, Phase


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "COMMAND", REPORT)
    monkeypatch.setattr(steps, "FIRST_BACKOFF", timedelta(seconds=1))


def running(failed_as: ExitClass | None = None, failures: int = 0, message: str = "") -> tuple[CompressionRun, Step]:
    last = None
    if failed_as is not None:
        last = AttemptRecord(attempt=2, job_name="x", exit_class=failed_as.value)
    step = Step(
        name="finetune",
        phase=Phase.FINETUNE,
        state=StepState.RUNNING,
        attempt=3,
        failures=failures,
        last_failure=last,
        message=message,
    )
    run = a_run(phases={"finetune": {"retryLimit": 5}})
    return run.model_copy(update={"status": run.status.model_copy(update={"steps": [step]})}), step


@pytest.mark.parametrize(
    ("failed_as", "failures", "begun", "note"),
    [
        (None, 0, False, ""),  # the first try after an edit, though jobs are counted on
        (ExitClass.USER_ERROR, 0, False, ""),  # forgiven
        (None, 0, True, "resumed"),
        (ExitClass.INTERRUPTED, 0, False, "resumed"),
        (ExitClass.INTERRUPTED, 1, False, "resumed"),
        (ExitClass.TRANSIENT, 2, True, "retry 2 of 5"),
    ],
)
def test_what_is_said_of_an_attempt(failed_as: ExitClass | None, failures: int, begun: bool, note: str) -> None:
    run, step = running(failed_as, failures)
    assert attempt_note(run, step, lambda _: begun) == note
    lines = StringIO()
    view = PlainView(lines, now=now, cached=lambda _: False, resumed=lambda _: begun)
    view.update(run)
    view.update(run)
    [line] = lines.getvalue().splitlines()
    assert line.endswith(f"finetune: running ({note})" if note else "finetune: running")


def test_a_job_that_waits_for_another_run_s_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, times, say = Bench(tmp_path), count(1), PlainView.print_line
    waits = {"waits": "job b/finetune/1", "waits_until": str(tmp_path / "said-{attempt}")}
    bench.behave(finetune={**waits, "fail": {"class": "Transient", "message": "no", "attempts": 1}})

    def note(view: PlainView, text: str) -> None:
        say(view, text)
        if text.startswith("finetune: waits for"):
            (tmp_path / f"said-{next(times)}").touch()

    monkeypatch.setattr(PlainView, "print_line", note)
    assert bench.run() == 0
    printed = capsys.readouterr().out.splitlines()
    said = [line.partition("finetune: ")[2] for line in printed if "  finetune: " in line]
    # Once for each of the two attempts.
    assert sum(line.startswith("waits for job b/finetune/1") for line in said) == 2
    assert sum("(retry 1 of 3)" in line for line in said) == 1
    assert said[-1].startswith("done in")


def test_the_live_table_tells_what_a_job_waits_for() -> None:
    from rich.console import Console

    out = StringIO()
    view = LiveView(Console(file=out, width=140), now=now, cached=lambda _: False, resumed=lambda _: True)
    view.update(running(message="waits for job b/finetune/1")[0])
    view.close()
    assert "waits for job b/finetune/1" in out.getvalue() and "resumed" not in out.getvalue()


@pytest.mark.parametrize(
    ("told", "live", "plain"),
    [
        ({"documents_per_second": 1234.4}, "1,234 documents/s", "1,234 documents/s"),
        ({"exported_step": 2500}, "exported step 2,500", "exported step 2,500"),
        (
            {"scores": {"calls": 0.25}, "exported_step": 20},
            "calls 0.250, exported step 20",
            "calls 0.250, 5,000 tokens/s, exported step 20",
        ),
    ],
)
def test_a_step_shows_what_its_phase_alone_tells(told: dict[str, Any], live: str, plain: str) -> None:
    from rich.console import Console

    run, step = running()
    progress = Progress.model_validate({"step": 30, "total_steps": 100, "tokens_per_second": 5000.0, **told})
    step = step.model_copy(update={"progress": progress})
    run = run.model_copy(update={"status": run.status.model_copy(update={"steps": [step]})})
    out, lines = StringIO(), StringIO()
    view = LiveView(Console(file=out, width=140), now=now, cached=lambda _: False, resumed=lambda _: False)
    view.update(run)
    view.close()
    assert live in out.getvalue()
    PlainView(lines, now=now, cached=lambda _: False, resumed=lambda _: False).update(run)
    assert "finetune: 30/100, " in lines.getvalue() and plain in lines.getvalue()
