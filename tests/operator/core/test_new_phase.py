"""A phase of this test's own, added to a copy of the sources as CONTRIBUTING says, from manifest to status."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

ADDED = {
    "pipeline/compression_pipeline/config/phases.py": [
        ('    EXPORT = "export"\n', '    EXPORT = "export"\n    WEIGH = "weigh"\n'),
        (
            "@dataclass(frozen=True)\nclass PhaseSpec:",
            """class WeighJob(JobConfig):
    roles = ("exported",)
    exported: str


class WeighResult(StepResult):
    speed: float = Field(description="Tokens a second of the weighed student.")
    ratings: dict[str, float] = {}
    notes: list[str] = []


@dataclass(frozen=True)
class PhaseSpec:""",
        ),
        (
            "        PhaseSpec(\n            Phase.EXPORT,",
            """        PhaseSpec(
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
            Phase.WEIGH,
            inputs=lambda spec: {"exported": Phase.EXPORT},
            configuration=lambda spec, student, precision: {},
        ),
        PhaseSteps(
            Phase.EXPORT,""",
        )
    ],
}
"""By file: what is replaced there. A phase's program would be one file more, phases/weigh.py."""

STORY = """
from local_jobs import a_run
from compression_operator.api.crd import crd_text
from compression_operator.api.status import CompressionRunStatus, Resolved, Step, StepState
from compression_operator.core.conditions import run_phase
from compression_operator.core.plan import plan
from compression_operator.core.results import figures_that_stand, record
from compression_pipeline.config import PHASES, Phase, ResolvedSource

crd = crd_text()
assert "- Weighing" in crd and "- weigh\\n" in crd and "jobs that weigh." in crd
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
result = PHASES[Phase.WEIGH].result(speed=3.0, ratings={"taste": 2.5}, notes=["none"])
status = record(CompressionRunStatus(steps=done), next(s for s in done if s.name == "weigh-width"), result)
figures = {"weigh.speed": 3.0, "weigh.ratings.taste": 2.5}
assert figures_that_stand(status, ["width"]).student("width").figures == figures
undone = status.model_copy(update={"steps": []})
assert figures_that_stand(undone, ["width"]).student("width").figures is None
"""


def test_a_phase_of_its_own_is_planned_and_told(tmp_path: Path) -> None:
    for folder in ("operator", "pipeline"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in ADDED.items():
        text = (tmp_path / name).read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{name} has no longer one {old!r}"
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
    path = [tmp_path / "operator", tmp_path / "pipeline", ROOT / "tests" / "operator" / "support"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    told = subprocess.run([sys.executable, "-c", STORY], env=environment, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
