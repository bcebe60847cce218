"""The phase report: the export's checkpoint with the scores in its card, whatever the volume can do."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from exporting import DISTILLED, EXPORTED, PRUNED, run, student_store
from pages import Page
from stores import DATA, TEACHER, common, context, publish

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import EvaluateConfig, EvaluateJob, EvaluateResult, ReportJob, TaskConfig, TaskScore
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import report

REPORTED, BASELINE, EVALUATED = "4" * 32, f"baseline-{'5' * 32}", f"evaluate-{'6' * 32}"
CORRECTED = f"baseline-corrected-{'7' * 32}"
CARD, PAGE = "model/README.md", "report/index.html"


def scored(store: Store, name: str, model: str, score: float) -> None:
    told = EvaluateJob(
        **common(store, name, name.rpartition("-")[2]),
        model=model,
        tasks="tasks-t",
        evaluate=EvaluateConfig(tasks=[TaskConfig(name="calls")]),
    )
    found = TaskScore(name="calls", metric="acc", score=score, stderr=0.01, samples=100)
    result = EvaluateResult(tasks=[found], harness="0.4.13", precision="FP32")
    publish(store, name, lambda path: (path / "scores.json").write_text("{}"), config=told, result=result)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, engine: Runtime) -> Store:
    made = student_store(tmp_path_factory.mktemp("scores"), engine, "llama3")
    run(made, EXPORTED)
    scored(made, BASELINE, DATA, 0.5)
    scored(made, EVALUATED, f"distill-{DISTILLED}", 0.4)
    return made


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Store:
    """The same in a store of the test's own."""
    shutil.copytree(store.root, tmp_path / "store")
    return Store(tmp_path / "store")


def reported(store: Store, *, baseline: str | None = BASELINE, corrected: str | None = None) -> Artifact:
    job = ReportJob(
        **common(store, "report-width", REPORTED),
        data=DATA,
        teacher=TEACHER,
        pruned=f"prune-{PRUNED}",
        distilled=f"distill-{DISTILLED}",
        exported=f"export-{EXPORTED}",
        baseline=baseline,
        baseline_corrected=corrected,
        evaluated=EVALUATED,
    )
    report.run(job, context(store, REPORTED)[0])
    return store.open(f"report-{REPORTED}")


def test_card_and_report_tell_the_scores_and_all_else_is_the_export(copy: Store) -> None:
    before = copy.open(f"export-{EXPORTED}").manifest.files
    made = reported(copy)
    files = made.manifest.files
    assert {name for name in files.keys() | before.keys() if files.get(name) != before.get(name)} == {CARD, PAGE}
    assert copy.holds_what_was_published(made) and copy.holds_what_was_published(copy.open(f"export-{EXPORTED}"))
    assert "| calls | acc | 0 | 100 |" in (made.path / CARD).read_text() and "-20.0 %" in (made.path / CARD).read_text()
    page = Page((made.path / PAGE).read_text())
    assert "calls (acc, 100 questions): 20.0 % below the teacher's" in page.text
    assert [row[0] for row in page.tables["fingerprints"]][-2:] == ["evaluate", "report"]


def test_what_the_teacher_did_not_score_is_said_to_be_missing(copy: Store) -> None:
    made, said = (
        reported(copy, baseline=None),
        "The teacher has no scores to compare with, because its evaluation failed.",
    )
    assert "| calls | acc | 0 | 100 |" in (made.path / CARD).read_text() and said in (made.path / CARD).read_text()
    assert said in Page((made.path / PAGE).read_text()).text


def test_a_change_is_never_of_the_corrected_teachers_score(copy: Store) -> None:
    scored(copy, CORRECTED, TEACHER, 0.3)
    made = reported(copy, baseline=None, corrected=CORRECTED)
    card, page = (made.path / CARD).read_text(), Page((made.path / PAGE).read_text()).text
    assert "| corrected teacher |" in card and "0.300" in card and "0.300" in page
    assert "%" not in card.partition("**Tasks.**")[2].partition("\n\n**")[0].partition("| calls")[2]
    assert "calls (acc, 100 questions): " not in page


def test_a_volume_without_hard_links_holds_a_copy(copy: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refused)
    made = reported(copy)
    assert copy.holds_what_was_published(made)
    [weights] = made.model.glob("*.safetensors")
    assert weights.stat().st_nlink == 1
