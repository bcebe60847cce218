"""Two sources by weight, one with prompts, from manifest to report and card; `compression plan` counts the epochs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def compression(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "compression_operator.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1800)
def test_a_mixture_with_prompts_from_manifest_to_card(tmp_path: Path) -> None:
    corpus = [sys.executable, str(EXAMPLES / "demo" / "corpus.py"), "--output", str(tmp_path)]
    subprocess.run(corpus, check=True, capture_output=True)
    places = [f"file:{tmp_path / name}" for name in ("dataset", "teacher-text")]
    few = {"globalBatchSize": 8, "microBatchSize": 8, "steps": 6, "warmupSteps": 1}
    told = {f"spec.dataset.sources[{number}].source": place for number, place in enumerate(places)}
    told |= {f"spec.{block}.{name}": value for block in ("finetune", "distill") for name, value in few.items()}
    told |= {"spec.students[0].prune.calibrationSamples": 8, "spec.validation.samples": 16}
    options = [option for field, value in told.items() for option in ("--set", f"{field}={value}")]
    file, workdir = str(EXAMPLES / "mixture.yaml"), tmp_path / "run"

    unknown = compression("plan", file, "--workdir", str(workdir), *options)
    assert "finetune, distill: how often the text is gone through is told once prepare has run" in unknown
    compression("run", file, "--workdir", str(workdir), *options)
    planned = compression("plan", file, "--workdir", str(workdir), *options)
    assert "distill: 6,144 tokens: " in planned and f"; {places[0]}: 0.0" in planned
    passes = json.loads(compression("plan", file, "--workdir", str(workdir), "--output", "json", *options))["passes"]
    assert [one["source"] for one in passes["distill"]["sources"]] == places
    assert all(0 < one["epochs"] < 1 for one in passes["finetune"]["sources"])

    status: dict[str, Any] = yaml.safe_load((workdir / "run.yaml").read_text())["status"]
    assert status["phase"] == "Succeeded"
    resolved, [student] = status["resolved"], status["students"]
    plain, asked = resolved["sources"]
    assert [plain["weight"], asked["weight"]] == [0.7, 0.3] and "learnedTokens" not in plain
    assert 0.2 < asked["learnedTokens"] / asked["trainTokens"] < 0.95
    assert resolved["learnedTokens"] == plain["trainTokens"] + asked["learnedTokens"]
    assert student["sample"].startswith("What does copy of shutil.py do?")

    percent = 100 * asked["learnedTokens"] / asked["trainTokens"]
    share = f"({asked['learnedTokens']:,} of them, {percent:.1f} %, are learned)"
    result = json.loads(next((workdir / "store" / "artifacts").glob("distill-*/manifest.json")).read_text())["result"]
    for page in (workdir / "report", workdir / "students" / "narrow" / ".." / "report"):
        said = (page / "index.html").read_text()
        for place, losses in zip(places, result["sourceLosses"], strict=True):
            assert place in said
            assert f"{losses['distilled']:.3f}" in said
        assert share in said
    card = (workdir / "students" / "narrow" / "README.md").read_text()
    assert f"| Data (0.7) | `{places[0]}` |" in card and f"| Data (0.3) | `{places[1]}` |" in card
    assert f"{resolved['learnedTokens']:,} of them" in card
    assert f"{places[1]}: {passes['distill']['sources'][1]['epochs']:.3g} epochs" in card
