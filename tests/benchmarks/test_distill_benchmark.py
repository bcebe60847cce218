"""The benchmark of distillation steps: all libraries compute the same loss, and ours takes little memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "distill.py"


def test_all_variants_compute_the_same_and_chunks_take_least() -> None:
    sizes = {"layers": 1, "vocabulary": 8192, "micro-batch": 4, "rounds": 1, "threads": 1}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, SCRIPT, "--json", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    names = ["kl_div", "modelopt", "fused", "liger", "chunked"]
    for part, tolerance in (("loss", 1e-5), ("step", 1e-2)):  # steps: of two loops, after three of Adam
        found = report[part]
        assert list(found) == names
        assert [each["value"] for each in found.values()] == pytest.approx(
            [found["chunked"]["value"]] * len(names), rel=tolerance
        )
        peaks = {name: each["peak"] for name, each in found.items()}
        assert min(peaks, key=lambda name: peaks[name]) == "chunked"
    assert report["loss"]["chunked"]["peak"] < 0.25 * report["loss"]["modelopt"]["peak"]
    assert all(each["tokensPerSecond"] > 0 for part in ("loss", "step") for each in report[part].values())
