"""A run that evaluates its models, from the manifest to status, table, report and card."""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from tests.pipeline.pages import Page
from tests.pipeline.task_folders import write_task
from tests.pipeline.tiny import texts, write_checkpoint
from tests.support.runs import tiny_run

TRAINING = {"steps": 2, "globalBatchSize": 2, "microBatchSize": 2, "warmupSteps": 1}
EVALUATE = {
    "tasks": [{"name": "calls", "source": "file:own", "limit": 8}],
    "generation": {"promptTokens": 8, "newTokens": 3, "repeats": 1},
}


def test_scores_and_speeds_are_told_everywhere(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "teacher", seed=3)
    write_task(tmp_path / "own")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()[:40]))
    manifest = tiny_run().distill(**TRAINING).spec(evaluate=EVALUATE).body()
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(manifest))
    work = tmp_path / "work"
    command = [sys.executable, "-m", "compression_operator.cli", "run", str(tmp_path / "run.yaml")]
    done = subprocess.run([*command, "--workdir", str(work)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "calls" in done.stdout and "acc" in done.stdout

    status = yaml.safe_load((work / "run.yaml").read_text())["status"]
    steps = [step["name"] for step in status["steps"]]
    assert steps == [
        *("prepare", "tasks", "prune-narrow", "distill-narrow", "export-narrow"),
        *("baseline", "evaluate-narrow", "report-narrow"),
    ]
    assert status["tasks"]["harness"] == "0.4.13"
    [student] = status["students"]
    for told in (student["evaluation"], status["teacher"]["evaluation"]):
        [score] = told["tasks"]
        assert (score["name"], score["metric"], score["samples"]) == ("calls", "acc", 8)
        assert score["stderr"] > 0 and 0 < score["score"] < 1
        assert told["generation"]["tokensPerSecond"] > 0 and told["generation"]["firstTokenSeconds"] > 0

    published = work / "store" / "artifacts" / student["artifact"]
    [made] = (published.parent).glob("export-*")
    assert published.name.startswith("report-")
    assert (work / "students" / "narrow").resolve() == (published / "model").resolve()
    files, others = ({path.name: path.stat() for path in (one / "model").iterdir()} for one in (published, made))
    assert {name for name in files if files[name].st_ino != others[name].st_ino} == {"README.md"}, "no weights twice"
    assert "**Tasks.**" not in (made / "model" / "README.md").read_text()
    card = (published / "model" / "README.md").read_text()
    assert "**Tasks.** Scores by lm-eval 0.4.13" in card and "| calls | acc | 0 | 8 |" in card
    assert "**Generation.**" in card
    for page in (work / "report" / "index.html", published / "report" / "index.html"):
        text = Page(page.read_text()).text
        assert "calls (acc, 8 questions)" in text and "Generation" in text
