"""The demo, from its manifest to its students: what `make demo` promises, but for the time it takes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.mark.timeout(1800)
def test_both_students_win_back_most_of_what_pruning_cost(tmp_path: Path) -> None:
    corpus = [sys.executable, str(EXAMPLES / "demo" / "corpus.py"), "--output", str(tmp_path / "text")]
    subprocess.run(corpus, check=True, capture_output=True)
    run = [sys.executable, "-m", "compression_operator.cli", "run", str(EXAMPLES / "demo.yaml")]
    run += ["--workdir", str(tmp_path / "demo"), "--set", f"spec.dataset.source=file:{tmp_path / 'text' / 'dataset'}"]
    run += ["--set", f"spec.evaluate.tasks[0].source=file:{tmp_path / 'text' / 'tasks'}"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    status = yaml.safe_load((tmp_path / "demo" / "run.yaml").read_text())["status"]
    assert status["phase"] == "Succeeded"
    assert {student["name"] for student in status["students"]} == {"width", "depth"}
    for student in status["students"]:
        loss = student["validationLoss"]
        assert loss["correctedTeacher"] < loss["teacher"], "teacher correction corrects"
        cost = loss["pruned"] - loss["correctedTeacher"]
        assert cost > 0
        assert (loss["pruned"] - loss["distilled"]) / cost >= 0.8
        assert 0.4 <= student["compressionRatio"] <= 0.7
        [score] = student["evaluation"]["tasks"]
        assert score["name"] == "continuation" and score["samples"] > 90 and 0 < score["stderr"] < 0.06
        assert student["sample"].startswith("The function returns")
        assert student["name"] in done.stdout
        assert (tmp_path / "demo" / "students" / student["name"] / "model.safetensors").is_file()
    assert (tmp_path / "demo" / "report" / "index.html").is_file()
