"""The benchmark of the operator's reaction runs, and what it counts (not what it times) stays within its bounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reaction.py"


@pytest.mark.cluster
def test_a_step_costs_at_most_eight_writes() -> None:
    command = [sys.executable, str(SCRIPT), "--runs", "1", "--completions", "16", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert {"p50_ms", "p99_ms", "writes_per_step", "rss_mib", "restart_s"} <= record.keys()
    # Two whole runs of eight steps: seven of them have jobs that follow a completion.
    assert record["samples"] == 14
    writes = record["writes"]
    # One job for each step, the first of the next run among them: that one may come after the count on a busy machine.
    assert 15 / 16 - 0.01 <= writes["jobs"] <= 1
    assert writes["statuses"] >= 1
    assert record["writes_per_step"] == pytest.approx(sum(writes.values()), abs=0.05)
    assert record["writes_per_step"] <= 8
