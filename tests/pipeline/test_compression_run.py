"""`compression run` over the real phases: killed in mid-distillation, run again, and again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from holding import Hold
from pages import Page
from tests.support.runs import tiny_run
from tests.support.waiting import until
from tiny import texts, write_checkpoint

MANIFEST = (
    tiny_run()
    .distill(steps=40, globalBatchSize=2, microBatchSize=2, warmupSteps=2, checkpointInterval=4, validationInterval=40)
    .spec(export={"dtype": "float32", "sampleTokens": 4})
    .body()
)

STUDENT = Path("students", "narrow", "model.safetensors")


def command(root: Path, *arguments: str, workdir: str = "work") -> list[str]:
    files = [str(root / "run.yaml"), "--workdir", str(root / workdir)]
    return [sys.executable, "-m", "compression_operator.cli", *arguments, *files]


def events(root: Path, attempt: int, workdir: str = "work") -> list[dict[str, Any]]:
    """The events of an attempt at distill, as far as they go."""
    found = list(root.glob(f"{workdir}/jobs/tiny-narrow-*-distill-*-{attempt}/log"))
    lines = found[0].read_text().splitlines() if found else []
    return [json.loads(line) for line in lines if line.startswith('{"event"') and line.endswith("}")]


def steps(found: list[dict[str, Any]]) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in found if event["event"] == "progress" and "loss" in event}


def processes_of(root: Path) -> list[int]:
    """Every process that a job under `root` started, wherever it has moved since."""
    mark = f"COMPRESSION_TERMINATION_MESSAGE={root}".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended, or is not ours
    return found


@pytest.mark.timeout(1800)
def test_killed_in_the_middle_it_goes_on_from_its_checkpoint_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    """Two whole runs and two that find all done; each of their steps imports torch."""
    write_checkpoint(tmp_path / "teacher")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()[:40]))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(MANIFEST))
    hold = Hold(tmp_path / "hold", 6)
    with subprocess.Popen(
        command(tmp_path, "run"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env=os.environ | hold.environment,
    ) as first:
        until(
            lambda: first.poll() is not None or max(steps(events(tmp_path, 1)), default=0) >= 6, "step 6", seconds=540
        )
        assert first.poll() is None, (tmp_path / "work" / "run.yaml").read_text()
        first.send_signal(signal.SIGKILL)
    until(lambda: hold.told_to_stop, "its job is told to stop")  # else it may be done before that
    hold.release()
    until(lambda: not processes_of(tmp_path), "nothing is left of it")

    second = subprocess.run(command(tmp_path, "run"), capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    before, after = steps(events(tmp_path, 1)), steps(events(tmp_path, 2))
    assert [*before, *after] == list(range(1, 41)) and max(before) >= 6, "told to stop it saved what it had done"
    assert _uninterrupted(tmp_path) == (before | after, (tmp_path / "work" / STUDENT).read_bytes()), "to the last bit"
    assert (tmp_path / "work" / "report" / "index.html").exists()
    status = yaml.safe_load((tmp_path / "work" / "run.yaml").read_text())["status"]
    assert status["phase"] == "Succeeded"
    assert [(step["name"], step["attempt"]) for step in status["steps"]] == [
        ("prepare", 1),
        ("prune-narrow", 1),
        ("distill-narrow", 2),
        ("export-narrow", 1),
    ]

    store = tmp_path / "work" / "store"
    # What it worked with is gone, but for the name of prepare's artifact; the curves are in the artifact.
    assert {path.name for path in store.glob("work/**/*") if path.is_file()} == {"published.json"}
    assert {path.name for path in store.glob("artifacts/distill-*/*")} >= {"history.json", "tensorboard"}

    third = subprocess.run(command(tmp_path, "run"), capture_output=True, text=True)
    assert third.returncode == 0 and third.stdout.count(": cached\n") == 4

    (report,) = store.glob("artifacts/export-*/report/index.html")
    page = Page(report.read_text())
    assert "none: students learn from the teacher as it came" in page.text
    assert [row[0] for row in page.tables["figures"]] == ["Model", "Teacher", "student"]
    figures = status["students"][0]
    assert f"{figures['validationLoss']['distilled']:.3f}" in page.tables["figures"][2]
    assert " ".join(figures["sample"].split()) in " ".join(page.text.split())
    # Its manifest makes this very student: every step of it is found in the store.
    (tmp_path / "student.yaml").write_text(page.text[page.text.index("apiVersion:") :])
    files = [str(tmp_path / "student.yaml"), "--workdir", str(tmp_path / "again"), "--store", str(store)]
    again = subprocess.run([*command(tmp_path, "run")[:-3], *files], capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count(": cached\n") == 4
    mine = yaml.safe_load((tmp_path / "again" / "run.yaml").read_text())["status"]["students"][0]
    assert mine["artifact"] == figures["artifact"]


def _uninterrupted(root: Path) -> tuple[dict[int, float], bytes]:
    """Losses by step, and the student's weights, of a run that nobody disturbs."""
    done = subprocess.run(command(root, "run", workdir="whole"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return steps(events(root, 1, "whole")), (root / "whole" / STUDENT).read_bytes()
