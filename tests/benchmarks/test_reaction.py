"""The benchmark of the operator's reaction runs, and what it counts (not what it times) stays within its bounds."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.support.waiting import until

TIMEOUT_SECONDS = 1800
"""The first of them builds programs, too."""

pytestmark = [pytest.mark.cluster, pytest.mark.own_cluster, pytest.mark.timeout(TIMEOUT_SECONDS)]

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reaction.py"


def test_a_step_costs_at_most_eight_writes() -> None:
    command = [sys.executable, str(SCRIPT), "--runs", "1", "--completions", "16", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert {"p50_ms", "p99_ms", "writes_per_step", "rss_mib", "restart_s"} <= record.keys()
    # Two whole runs of eight steps: seven of them have jobs that follow a completion.
    assert record["samples"] == 14
    writes = record["writes"]
    # One job for each step, the first of the next run among them: that one may come after the count on a busy machine.
    assert 15 / 16 - 0.01 <= writes["jobs"] <= 1
    # One for each of the five phases of both runs, whose steps side by side may be told of in one where the operator is
    # the slower one, and one for the beginning of the second; its end may come after the count.
    assert writes["statuses"] >= 10 / 16 - 0.01
    assert record["writes_per_step"] == pytest.approx(sum(writes.values()), abs=0.05)
    assert record["writes_per_step"] <= 8


def test_told_to_stop_it_leaves_nothing_behind() -> None:
    # Not pytest's folder, whose path is too long for Unix sockets.
    with tempfile.TemporaryDirectory(prefix="told-to-stop-") as folder:
        stopped(Path(folder))


def stopped(folder: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--runs", "1", "--completions", "1000"]
    measuring = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)}, stderr=subprocess.PIPE)
    try:

        def loaded() -> bool:
            assert measuring.poll() is None, "it ended before its load began"
            return any("reaction_load.py" in line for line in processes_of(folder))

        until(loaded, "the load", seconds=900)
        measuring.terminate()
        measuring.communicate(timeout=240)
    finally:
        measuring.kill()
    assert measuring.returncode == 128 + signal.SIGTERM
    assert not processes_of(folder)
    assert not list(folder.iterdir())


def processes_of(folder: Path) -> list[str]:
    """Command lines that name a folder."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append((process / "cmdline").read_text().replace("\0", " "))
    return [line for line in found if str(folder) in line]
