"""The check for GPUs, at toy sizes where there is none: every part runs, one that fails leaves the others theirs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def check(output: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, SCRIPT, "--output", output, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_demo_on_both_devices_and_interrupted(tmp_path: Path) -> None:
    done = check(tmp_path, "--cpu", "--budget", "3600", "--part", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())["demo"]
    assert set(found["losses"]) == {"width pruned", "width distilled", "width exported"}
    assert all(gpu == cpu for gpu, cpu in found["losses"].values()), "without a GPU both compute the same"
    assert found["interruptedIsEqual"]
    assert "| width exported |" in (tmp_path / "table.md").read_text()


def test_every_other_part_runs_and_is_in_the_table(tmp_path: Path) -> None:
    parts = ("step", "importance", "profile")
    options = [option for part in parts for option in ("--part", part)]
    done = check(tmp_path, "--cpu", "--budget", "3600", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert tuple(results) == parts
    steps = results["step"]["beside"]["variants"]
    assert set(steps) == {"chunked", "modelopt", "kl_div", "liger"}
    assert all(one["tokensPerSecond"] > 0 and one["mfu"] > 0 for one in steps.values())
    assert set(steps["chunked"]["sections"]) == {"teacher", "student", "loss", "backward", "optimizer"}
    assert all(seconds > 0 for seconds in steps["chunked"]["sections"].values())
    whole = results["step"]["whole"]["variants"]
    assert whole["recomputed"]["loss"] == whole["chunked"]["loss"]
    assert len(results["profile"]["dearest"]) == 10
    table = (tmp_path / "table.md").read_text()
    assert all(f"### {part}" in table for part in parts)
    assert sum(line.startswith("| recomputed | ") for line in table.splitlines()) == 1


def test_a_part_that_fails_leaves_the_others_their_turn(tmp_path: Path) -> None:
    done = check(tmp_path, "--cpu", "--budget", "0", "--part", "step", "--part", "profile")
    assert done.returncode == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["step", "profile"]
    assert all("the time was over" in found["failed"] for found in results.values())
    assert "failed: the time was over" in (tmp_path / "table.md").read_text()


def test_without_a_gpu_it_says_what_would_run(tmp_path: Path) -> None:
    done = check(tmp_path / "none")
    assert done.returncode == 2 and "torch finds no GPU here; --cpu" in done.stderr
    assert not (tmp_path / "none").exists()
