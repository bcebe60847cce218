"""Phases of this test's own, added to a copy of the sources as CONTRIBUTING says, from manifest to report and card."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.pipeline.pages import Page
from tests.pipeline.tiny import texts, write_checkpoint
from tests.support.runs import tiny_run

ROOT = Path(__file__).parents[3]

ADDED = {
    "pipeline/compression_pipeline/config/phases.py": [
        ("from .jobs import EngineJob, JobConfig\n", "from .jobs import EngineJob, JobConfig, StepResult\n"),
        ('    EXPORT = "export"\n', '    TASTE = "taste"\n    EXPORT = "export"\n    WEIGH = "weigh"\n'),
        (
            "PHASES: Mapping[Phase, PhaseSpec] = {",
            """class TasteJob(JobConfig):
    distilled: str


class TasteResult(StepResult):
    bitterness: float = Field(description="Of the distilled student, from 0 to 1.")


class WeighJob(JobConfig):
    roles = ("exported",)
    exported: str


class WeighResult(StepResult):
    speed: float = Field(description="Tokens a second of the weighed student.")
    ratings: dict[str, float] = {}
    notes: list[str] = []


PHASES: Mapping[Phase, PhaseSpec] = {""",
        ),
        (
            '    distilled: str = Field(description="Artifact with the distilled student (distill\'s).")\n',
            '    distilled: str = Field(description="Artifact with the distilled student (distill\'s).")\n'
            '    roles = (*JobConfig.roles, "tasted")\n    tasted: str\n',
        ),
        (
            "        PhaseSpec(\n            Phase.EXPORT,",
            """        PhaseSpec(
            Phase.TASTE, TasteJob, TasteResult, under_way="Tasting", purpose="taste", single_process=True
        ),
        PhaseSpec(
            Phase.WEIGH, WeighJob, WeighResult, under_way="Weighing", purpose="weigh", single_process=True
        ),
        PhaseSpec(
            Phase.EXPORT,""",
        ),
    ],
    "operator/compression_operator/core/phase_steps.py": [
        (
            "        PhaseSteps(\n            Phase.EXPORT,",
            """        PhaseSteps(
            Phase.TASTE,
            inputs=lambda spec: {"distilled": Phase.DISTILL},
            configuration=lambda spec, student, precision: {},
        ),
        PhaseSteps(
            Phase.WEIGH,
            inputs=lambda spec: {"exported": Phase.EXPORT},
            configuration=lambda spec, student, precision: {},
        ),
        PhaseSteps(
            Phase.EXPORT,""",
        ),
        (
            "inputs=_students,",
            'inputs=lambda spec: {**_students(spec), "tasted": Phase.TASTE},',
        ),
    ],
}
"""By file: what is replaced there."""

PROGRAM = """
from compression_pipeline.config.phases import {0}Job, {0}Result


def run(job, context):
    result = {0}Result({2})
    with context.store.draft("{1}", job.fingerprint) as draft:
        (draft.path / "{1}.txt").write_text(str(job.inputs))
        return draft.publish(config=job.to_json(), inputs={{}}, result=result.to_json()).result({0}Result)
"""

PROGRAMS = {
    "taste": PROGRAM.format("Taste", "taste", "bitterness=0.1875"),
    "weigh": PROGRAM.format("Weigh", "weigh", "speed=1234.5, ratings={'grip': 2.25}, notes=['unseen']"),
}
"""The phases' own files, phases/<phase>.py."""

STORY = """
from local_jobs import a_run
from compression_operator.api.crd import crd_text
from compression_operator.api.resolved import Resolved
from compression_operator.api.status import CompressionRunStatus, Step, StepState
from compression_operator.core.conditions import run_phase
from compression_operator.core.plan import plan
from compression_operator.core.results import figures_that_stand, record
from compression_pipeline.config import PHASES, Phase, ResolvedSource

crd = crd_text()
assert "- Tasting" in crd and "- Weighing" in crd and "- weigh\\n" in crd and "jobs that weigh." in crd
run = a_run(phases={"weigh": {"retryLimit": 7}})
source = ResolvedSource(source="x", digest="0" * 32)
planned = plan(run.spec, discovered={"prepare": Resolved(key="0" * 32, teacher=source, dataset=source)})
weigh = planned.get("weigh-width")
assert weigh and weigh.dependencies == ("export-width",) and [s.name for s in planned.steps][-1] == "weigh-depth"
job = planned.job(weigh, run="demo", attempt=1)
assert job.config.inputs == (planned.get("export-width").artifact,) and job.settings.retry_limit == 7
done = [Step(name=s.name, phase=s.phase, student=s.student, state=StepState.SUCCEEDED) for s in planned.steps]
assert run_phase(done, suspended=False) == "Succeeded"
last = done[-1].model_copy(update={"state": StepState.RUNNING})
assert run_phase([*done[:-1], last], suspended=False) == "Weighing", "a run has succeeded once all of its steps have"
export = planned.job(planned.get("export-width"), run="demo", attempt=1)
assert planned.get("taste-width").artifact in export.config.inputs
result = PHASES[Phase.WEIGH].result(speed=3.0, ratings={"taste": 2.5}, notes=["none"])
status = record(CompressionRunStatus(steps=done), next(s for s in done if s.name == "weigh-width"), result)
figures = {"weigh.speed": 3.0, "weigh.ratings.taste": 2.5}
assert figures_that_stand(status, ["width"]).student("width").figures == figures
undone = status.model_copy(update={"steps": []})
assert figures_that_stand(undone, ["width"]).student("width").figures is None
"""


MANIFEST = tiny_run().distill(steps=2, globalBatchSize=2, microBatchSize=2, warmupSteps=1).body()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a program that runs from a copy of the sources with the phases in it."""
    root = tmp_path_factory.mktemp("sources")
    for folder in ("operator", "pipeline"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in ADDED.items():
        text = (root / name).read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{name} has no longer one {old!r}"
            text = text.replace(old, new)
        (root / name).write_text(text)
    for name, program in PROGRAMS.items():
        (root / "pipeline" / "compression_pipeline" / "phases" / f"{name}.py").write_text(program)
    path = [root / "operator", root / "pipeline", ROOT / "tests" / "operator" / "support"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}


def test_phases_of_its_own_are_planned_and_told(environment: dict[str, str]) -> None:
    told = subprocess.run([sys.executable, "-c", STORY], env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr


def test_they_run_and_status_report_and_card_show_what_they_report(environment: dict[str, str], tmp_path: Path) -> None:
    """A whole run of the smallest teacher there is. Export names what taste made, so the card shows that."""
    write_checkpoint(tmp_path / "teacher")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()[:40]))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(MANIFEST))
    work = tmp_path / "work"

    def compression(*arguments: str) -> str:
        command = [sys.executable, "-m", "compression_operator.cli", *arguments, "--workdir", str(work)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    figures = {"taste.bitterness": 0.1875, "weigh.speed": 1234.5, "weigh.ratings.grip": 2.25}
    shown = [*figures, "0.1875", "1,234.5", "2.25"]
    told = compression("run", str(tmp_path / "run.yaml"))
    assert [text for text in shown if text not in told] == []
    [student] = yaml.safe_load((work / "run.yaml").read_text())["status"]["students"]
    assert student["figures"] == figures
    status = compression("status")
    assert [text for text in [*shown, "taste-narrow", "weigh-narrow"] if text not in status] == []

    page = Page((work / "report" / "index.html").read_text())
    taste = ["bitternessOf the distilled student, from 0 to 1.", "0.1875"]
    weigh = [["speedTokens a second of the weighed student.", "1,234.5"], ["ratings: grip", "2.25"]]
    assert page.tables["measured"] == [taste, *weigh]
    steps = [row[0] for row in page.tables["fingerprints"][1:]]
    assert steps == ["prepare", "prune-narrow", "distill-narrow", "taste-narrow", "export-narrow", "weigh-narrow"]

    exported = work / "store" / "artifacts" / student["artifact"]
    card = (exported / "model" / "README.md").read_text()
    assert "**Taste.**" in card and "| bitterness | 0.1875 | Of the distilled student, from 0 to 1. |" in card
    own = Page((exported / "report" / "index.html").read_text())
    assert own.tables["measured"] == [taste]
    assert "taste" in [row[0] for row in own.tables["fingerprints"]]
