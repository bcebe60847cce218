"""The report that every export leaves beside its checkpoint: of this student, from what led to it, always the same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from exporting import DISTILLED, EXPORTED, PRUNED, job, run, student_store
from pages import Page
from stores import DATA, TEACHER, common, context

from compression_operator.api.resolved import Resolved
from compression_operator.api.spec import CompressionRunSpec, Student
from compression_operator.core.plan import plan
from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import (
    PHASES,
    Architecture,
    ConfigModel,
    DistillResult,
    EvaluateConfig,
    ExportDtype,
    ExportResult,
    ImportanceConfig,
    Phase,
    PruneConfig,
    Ranking,
    ResolvedSource,
    SearchJob,
    TargetConfig,
    TaskConfig,
    ValidationConfig,
)
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import export
from compression_pipeline.report import words
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.data import Exported
from compression_pipeline.report.page import render
from compression_pipeline.report.phases import REPORTS
from compression_pipeline.report.student import load_student, spec_of

STEPS = {"prepare": DATA, "finetune": TEACHER, "prune": f"prune-{PRUNED}", "distill": f"distill-{DISTILLED}"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, engine: Runtime) -> Store:
    return student_store(tmp_path_factory.mktemp("report"), engine, "llama3")


@pytest.fixture(scope="module")
def exported(store: Store) -> tuple[ExportResult, Artifact]:
    return run(store, EXPORTED, sample_prompt="def save")


@pytest.fixture
def copy(store: Store, tmp_path: Path) -> Store:
    """The same inputs in a store of the test's own; nothing is exported there yet."""
    shutil.copytree(
        store.root, tmp_path / "store", ignore=lambda _, names: [n for n in names if n.startswith("export")]
    )
    return Store(tmp_path / "store")


def page_of(artifact: Artifact) -> Page:
    return Page((artifact.path / "report" / "index.html").read_text(encoding="utf-8"))


def said(page: Page) -> str:
    return " ".join(page.text.split())


def test_it_lies_beside_the_checkpoint_and_the_card_leads_to_it(exported: tuple[ExportResult, Artifact]) -> None:
    _, artifact = exported
    assert [path.name for path in (artifact.path / "report").iterdir()] == ["index.html"]
    assert artifact.manifest.files["report/index.html"].size > 20_000
    card = (artifact.model / "README.md").read_text()
    link = card.partition("[report](")[2].partition(")")[0]
    assert (artifact.model / link).resolve() == (artifact.path / "report" / "index.html").resolve()
    assert sorted(path.name for path in artifact.model.glob("*.html")) == []


def test_its_figures_are_those_of_the_chain(store: Store, exported: tuple[ExportResult, Artifact]) -> None:
    result, artifact = exported
    page = page_of(artifact)
    assert "those in one sequence see each other" in page.text
    assert "0.0645 epochs, 256 different ones" in page.text
    assert "computed in float32" in page.text
    head, teacher, corrected, student = page.tables["figures"]
    column = {name: number for number, name in enumerate(head)}
    distilled = store.open(f"distill-{DISTILLED}").result(DistillResult)
    whole = Architecture.model_validate(store.open(DATA).manifest.result["teacher"]).parameters
    assert teacher[column["Loss"]] == "5.900"
    assert corrected[column["Loss"]] == "5.800"
    assert student[column["Parameters"]] == f"{result.parameters / 1e3:.3g} k"
    assert student[column["Of teacher"]] == f"{result.parameters / whole * 100:.0f} %"
    assert result.distilled_loss == distilled.rounded_losses[ExportDtype.BFLOAT16] != distilled.distilled_loss
    assert student[column["Loss"]] == f"{result.distilled_loss:.3f}"
    assert student[column["When pruned"]] == f"{distilled.pruned_loss:.3f}"
    assert student[column["Training tokens/s"]] == f"{distilled.tokens_per_second:,.0f}"
    weights = sum(path.stat().st_size for path in artifact.model.glob("*.safetensors"))
    assert student[column["Weights"]] == f"{weights / 1e3:.1f} kB"
    text = said(page)
    assert text.count("Tiny-Llama compressed to") == 2  # in the browser's title, too
    assert " ".join(result.sample.split()) in text
    assert result.teacher_sample and " ".join(result.teacher_sample.split()) in text
    assert f"its logits are within {result.relative_error:.1e} of" in text or "equal, to the last bit" in text
    curves = next(value for _, name, value in page.attributes if name == "aria-label" and "while distilling" in value)
    assert f"student: from {distilled.pruned_loss:.3f} to {distilled.distilled_loss:.3f}" in curves
    assert "corrected teacher: 5.800" in curves


def told_of_the_teacher(store: Store, **changes: Any) -> None:
    """Let the teacher's correction have told this of itself; None for what an older image didn't tell."""
    path = store.open(TEACHER).path / "manifest.json"
    content = json.loads(path.read_text())
    for name, value in changes.items():
        content["result"].pop(name, None)
        if value is not None:
            content["result"][name] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("told", [12, None], ids=["told", "of an older image"])
def test_what_was_measured_over_other_sequences_is_not_shown_beside_the_rest(copy: Store, told: int | None) -> None:
    """The teacher was corrected before `validation.samples` was edited, the student made after that."""
    told_of_the_teacher(copy, validationSequences=told)
    _, artifact = run(copy, EXPORTED)
    distilled = copy.open(f"distill-{DISTILLED}").result(DistillResult)
    card = (artifact.model / "README.md").read_text()
    assert "over the same 4 sequences of 32 tokens" in card
    assert "Teacher as it came |" not in card and "5.9000" not in card
    assert "The loss of the teacher as it came is not among them" in card
    assert f"| Teacher, corrected on this data | {distilled.teacher_loss:.4f} |" in card
    page = page_of(artifact)
    head, teacher, corrected, _ = page.tables["figures"]
    loss = head.index("Loss")
    assert (teacher[loss], corrected[loss]) == (words.DASH, f"{distilled.teacher_loss:.3f}")
    assert "The teacher was measured over 12 validation sequences and not over 4 as the others" in said(page)


def test_it_says_what_chose_the_parts_that_were_kept(exported: tuple[ExportResult, Artifact]) -> None:
    text = said(page_of(exported[1]))
    assert "hidden channels, feed-forward neurons ranked by their activations" in text
    assert "layers 2 dropped, as the manifest names them, not ranked" in text
    assert "importance measured on 8 sequences" in text
    assert "kept: 1, 3 of 3; the dropped ones are named in the manifest" in text
    assert "32 channels kept" in text and "64 neurons a layer kept" in text


def test_it_tells_how_to_make_it_again(store: Store, exported: tuple[ExportResult, Artifact]) -> None:
    page = page_of(exported[1])
    chain = {name: store.open(artifact) for name, artifact in STEPS.items()}
    rows = [[name, artifact.manifest.config["fingerprint"], artifact.name] for name, artifact in chain.items()]
    assert page.tables["fingerprints"][1:] == [*rows, ["export", EXPORTED, f"export-{EXPORTED}"]]
    spec = yaml.safe_load(page.text[page.text.index("apiVersion:") :])["spec"]
    assert spec == {
        "teacher": {"model": "hf://someone/Tiny-Llama", "revision": "abc123"},  # the commit, not the branch
        "dataset": {"source": "file:texts", "sequenceLength": 32},
        "finetune": {"steps": 5},
        "students": [
            {
                "name": "student",
                "prune": {
                    "hiddenSize": 32,
                    "ffnHiddenSize": 64,
                    "dropLayers": [2],
                    "divisor": 16,
                    "calibrationSamples": 8,
                },
            }
        ],
        "distill": {"steps": 2, "globalBatchSize": 4, "microBatchSize": 4, "learningRate": 1e-3, "warmupSteps": 1},
        "validation": {"samples": 4},
        "export": {"samplePrompt": "def save", "sampleTokens": 12},
    }
    assert 'AutoModelForCausalLM.from_pretrained("../model")' in page.text
    tables = [row for table in page.tables.values() for row in table]
    assert ["distill", "1234"] in tables, "a seed"
    assert any(row[0] == "torch" for row in tables), "a version"


def test_what_was_pruned_without_a_gpu_is_found_where_there_is_one(copy: Store) -> None:
    """The manifest says it by what prune asks for; trainings have a setting for their arithmetic."""
    path = copy.open(f"prune-{PRUNED}").path / "manifest.json"
    content = json.loads(path.read_text())
    content["metrics"]["plannedPrecision"] = "FP32"
    path.write_text(json.dumps(content))
    page = page_of(run(copy, EXPORTED)[1])
    spec = yaml.safe_load(page.text[page.text.index("apiVersion:") :])["spec"]
    assert spec["phases"] == {"prune": {"gpusPerNode": 0}}
    told = CompressionRunSpec.model_validate(spec)
    resolved = Resolved(
        key="d" * 32,
        teacher=ResolvedSource(source="hf://someone/Tiny-Llama", digest="1"),
        dataset=ResolvedSource(source="file:texts", digest="2"),
    )
    told = told.model_copy(update={"finetune": None})
    found = {"prepare": resolved}
    here, there = (plan(told, discovered=found, gpus=gpus).get("prune-student") for gpus in (False, True))
    assert here and there and here.artifact == there.artifact is not None


def test_the_manifest_holds_what_a_job_names_as_its_blocks(copy: Store) -> None:
    """How a phase ran is no block of a manifest; every block of a manifest that a job has is one of its own."""
    path = copy.open(f"prune-{PRUNED}").path / "manifest.json"
    content = json.loads(path.read_text())
    content["config"]["parallelism"] = {"tensor": 2}
    path.write_text(json.dumps(content))
    page = page_of(run(copy, EXPORTED)[1])
    spec = yaml.safe_load(page.text[page.text.index("apiVersion:") :])["spec"]
    CompressionRunSpec.model_validate(spec)
    blocks = {*CompressionRunSpec.model_fields, *Student.model_fields}
    for entry in PHASES.values():
        kinds: dict[str, Any] = {name: field.annotation for name, field in entry.job.model_fields.items()}
        settings = {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, ConfigModel)}
        assert settings & blocks == {*entry.job.blocks}


def test_card_and_manifest_tell_the_task_that_chose_the_weights(store: Store) -> None:
    ancestry = Ancestry.read(*(store.open(artifact) for artifact in STEPS.values()))
    made = ancestry.made[Phase.DISTILL]
    settings = {"task_interval": 1, "tasks": ["calls"], "keep_best": "calls"}
    scoring = EvaluateConfig(tasks=[TaskConfig(name="calls", source="file:tasks", shots=1)])
    chosen = replace(
        made,
        job=made.job.model_copy(
            update={"distill": made.job.distill.model_copy(update=settings), "scoring": scoring, "tasks": "tasks-t"}
        ),
        result=made.result.model_copy(update={"best_step": 1, "best_score": 0.375}),
    )
    told = replace(ancestry, made={**ancestry.made, Phase.DISTILL: chosen})
    paragraph = "Kept are the weights after step 1, whose score in calls, 0.375, was the best."
    assert paragraph in list(REPORTS[Phase.DISTILL].card(told))
    spec = spec_of(told, job(store))
    CompressionRunSpec.model_validate(spec)
    assert spec["evaluate"] == {"tasks": [{"name": "calls", "source": "file:tasks", "shots": 1}]}
    assert "evaluate" not in spec_of(ancestry, job(store))


def test_the_manifest_asks_a_task_as_often_as_it_was_where_layers_and_candidates_are_ranked_by_it(store: Store) -> None:
    """`depthSamples` and `rankSamples` are prune's. The task's own limit is what the others of the two go by."""
    ancestry = Ancestry.read(*(store.open(artifact) for artifact in STEPS.values()))
    made = ancestry.made[Phase.PRUNE]

    def limit(depth: int | None, rank: int | None, own: int | None) -> int | None:
        def asked(samples: int | None) -> EvaluateConfig:
            return EvaluateConfig(tasks=[TaskConfig(name="calls", limit=samples or own)])

        target = TargetConfig(ratio=2, rank=Ranking.TASK, rank_samples=rank)
        prune = PruneConfig(target=target, importance=ImportanceConfig(depth="Task", depth_samples=depth))
        pruned = made.job.model_copy(update={"prune": prune, "evaluate": asked(depth), "searched": "search-s"})
        told = {**common(store, "search-student"), "data": DATA, "teacher": TEACHER, "sequence_length": 8}
        scored = {"tasks": "tasks-t", "evaluate": asked(depth), "ranked_by": asked(rank)}
        search = SearchJob(**told, **scored, prune=prune, validation=ValidationConfig())
        jobs = {Phase.SEARCH: replace(made, job=search), Phase.PRUNE: replace(made, job=pruned)}
        spec = spec_of(replace(ancestry, made={**ancestry.made, **jobs}), job(store))
        (task,) = spec["evaluate"]["tasks"]
        return task.get("limit")

    for own in (None, 30):
        assert limit(None, None, own) == limit(20, None, own) == limit(None, 20, own) == own
    assert limit(20, 20, None) is None, "a number that neither of the two goes by is nobody's"
    told = EvaluateConfig(tasks=[TaskConfig(name="calls", limit=20)])
    prune = PruneConfig(layers=2, importance=ImportanceConfig(depth="Task", depth_samples=20))
    pruned = made.job.model_copy(update={"prune": prune, "evaluate": told})
    spec = spec_of(replace(ancestry, made={**ancestry.made, Phase.PRUNE: replace(made, job=pruned)}), job(store))
    assert spec["evaluate"] == {"tasks": [{"name": "calls"}]}


def test_it_stands_on_its_own(exported: tuple[ExportResult, Artifact]) -> None:
    page = page_of(exported[1])
    references = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert references and all(value.startswith(("#", "data:")) for value in references)
    assert "<script" not in (exported[1].path / "report" / "index.html").read_text()


def test_two_exports_of_the_same_inputs_are_equal_to_the_byte(
    copy: Store, exported: tuple[ExportResult, Artifact]
) -> None:
    """In another store, for another run that calls the student otherwise, at another attempt."""
    _, artifact = exported
    told, _ = context(copy, EXPORTED, attempt=3)
    names = {"run": "later", "step": "export-narrow", "student": "narrow", "attempt": 3, "store": str(copy.root)}
    export.run(job(copy, EXPORTED, sample_prompt="def save").model_copy(update=names), told)
    again = copy.open(artifact.name)
    assert again.manifest.files == artifact.manifest.files, "paths, sizes and SHA-256 of all that was published"
    assert "report/index.html" in again.manifest.files


def test_what_cannot_be_read_is_said_to_be_missing(copy: Store) -> None:
    chosen = copy.open(f"prune-{PRUNED}").path / "chosen.json"
    chosen.write_bytes(b"x" * chosen.stat().st_size)
    _, artifact = run(copy, EXPORTED)
    text = said(page_of(artifact))
    assert f"prune-{PRUNED} has no importance scores that can be read, so they are left out." in text
    assert "channels kept" not in text


def test_a_student_without_samples_says_so(store: Store) -> None:
    page = loaded(store, sample="", teacher_sample=None)
    assert "There is no sample" in page
    page = loaded(store, sample="def save it", teacher_sample=None)
    assert "def save it" in page
    assert "The teacher wrote nothing to compare with" in page


def loaded(store: Store, **changes: Any) -> str:
    """A page of the student as it would be with this outcome of the export."""
    chain = Ancestry.read(*map(store.open, STEPS.values()))
    outcome = Exported(relative_error=0.0, loss=None, dtype="bfloat16", weights=1, sample="s", teacher_sample="t")
    return said(Page(render(load_student(chain, Phase.EXPORT, job(store), replace(outcome, **changes)), "")))


def test_phases_of_several_versions_are_told(copy: Store, exported: tuple[ExportResult, Artifact]) -> None:
    path = copy.open(f"prune-{PRUNED}").path / "manifest.json"
    torch = copy.open(f"prune-{PRUNED}").manifest.versions["torch"]
    path.write_text(path.read_text().replace(f'"torch": "{torch}"', '"torch": "2.0.1"'))
    assert f"{torch}, 2.0.1" in loaded(copy)
    assert "2.0.1" not in said(page_of(exported[1]))


def test_a_report_that_cannot_be_drawn_costs_a_warning_and_nothing_else(
    copy: Store, exported: tuple[ExportResult, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that fills up: half a page is there, and then it ends."""
    whole = Path.write_text

    def torn(path: Path, data: str, **options: Any) -> int:
        if path.name != "index.html":
            return whole(path, data, **options)
        whole(path, data[:9], **options)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", torn)
    told, events = context(copy, EXPORTED)
    result = export.run(job(copy, EXPORTED, sample_prompt="def save"), told)
    warnings = [event["message"] for event in events.seen if event["event"] == "warning"]
    assert len(warnings) == 1
    assert warnings[0].startswith("the report could not be drawn (OSError: [Errno 28] No space left on device")
    assert warnings[0].endswith("the checkpoint is whole and proved")
    artifact = copy.open(f"export-{EXPORTED}")
    assert result.relative_error == exported[0].relative_error
    assert not [name for name in artifact.manifest.files if not name.startswith("model/")]
    assert "report](" not in (artifact.model / "README.md").read_text()
