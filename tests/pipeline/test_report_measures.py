"""Figures of a report that were measured at different times: the last ones are shown, and only what compares."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from report_run import CORRECTED_LOSS, DEPTH, TEACHER_LOSS, WIDTH, Run, history

from compression_operator.api.run import CompressionRun
from compression_pipeline.artifact import Store
from compression_pipeline.config import PHASES, Phase, Precision, TrainingResult, digest
from compression_pipeline.errors import UserError
from compression_pipeline.report import words
from compression_pipeline.report.data import Measured
from compression_pipeline.report.phases import REPORTS, PhaseReport
from compression_pipeline.report.reading import Reader
from compression_pipeline.report.resource import Resource, Student
from compression_pipeline.report.write import write_report
from compression_pipeline.store.published import Published


def page_of(run: Run) -> Page:
    return Page(write_report(run.run_yaml, run.store, run.run_yaml.parent / "page").read_text(encoding="utf-8"))


def test_figures_that_a_step_measured_anew_are_the_ones_shown(tmp_path: Path) -> None:
    """After an edit of validation.samples: the weights stay, and with them what their artifact tells of itself."""
    run = Run(tmp_path).write()
    store = Store(run.store)
    for step in run.steps:
        if step["phase"] in ("finetune", "distill"):
            told = store.open(step["artifact"]).manifest.result
            anew = {name: value + 1 for name, value in told.items() if name.endswith("Loss")}
            note = Published(artifact=step["artifact"], result=anew | {"validationSequences": 512})
            store.record_published(step["fingerprint"], note)
    page = page_of(run)
    head, teacher, corrected, width, _ = page.tables["figures"]
    loss = head.index("Loss")
    assert teacher[loss] == f"{TEACHER_LOSS + 1:.3f}"
    assert corrected[loss] == f"{CORRECTED_LOSS + 1:.3f}"
    assert width[loss] == f"{WIDTH.distilled + 1:.3f}"
    assert width[head.index("When pruned")] == f"{WIDTH.pruned + 1:.3f}"


def test_models_that_were_measured_over_other_sequences_are_not_compared(tmp_path: Path) -> None:
    run = Run(tmp_path).write()
    store = Store(run.store)
    for name, sequences in (("finetune", 256), (f"distill-{WIDTH.name}", 512), (f"distill-{DEPTH.name}", 256)):
        step = next(step for step in run.steps if step["name"] == name)
        note = Published(artifact=step["artifact"], result={"validationSequences": sequences})
        store.record_published(step["fingerprint"], note)
    page = page_of(run)
    head, teacher, corrected, width, depth = page.tables["figures"]
    losses = [row[head.index("Loss")] for row in (teacher, corrected, width, depth)]
    assert losses == [words.DASH, f"{CORRECTED_LOSS:.3f}", f"{WIDTH.distilled:.3f}", words.DASH]
    assert f"{DEPTH.name} was measured over 256 validation sequences and not over 512 as the others" in page.text


def test_what_any_phase_tells_of_losses_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phase that measures a student again later needs its entry in `REPORTS`, and nothing else of the report's."""
    told = PhaseReport(losses=lambda result: Measured(taught_by=0.5, pruned=9.0))
    monkeypatch.setitem(REPORTS, Phase.EXPORT, told)
    head, _, corrected, width, _ = page_of(Run(tmp_path).write()).tables["figures"]
    assert width[head.index("When pruned")] == "9.000"
    assert width[head.index("Loss")] == f"{WIDTH.distilled:.3f}", "what it does not tell, distill does"
    assert corrected[head.index("Loss")] == f"{CORRECTED_LOSS:.3f}"


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def inner(annotation: Any) -> type[BaseModel] | None:
    """The model in an optional, or in a sequence."""
    parts = [annotation, *get_args(annotation)]
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def unknown(read: type[BaseModel], written: type[BaseModel], path: str = "") -> Iterator[str]:
    """Fields that are read and that nobody writes."""
    for name, field in fields(read).items():
        there = fields(written).get(name)
        if there is None:
            yield f"{path}{name}"
        elif (model := inner(field.annotation)) and (other := inner(there.annotation)):
            yield from unknown(model, other, f"{path}{name}.")


def test_what_is_read_of_a_resource_is_what_the_operator_writes() -> None:
    assert list(unknown(Resource, CompressionRun)) == []


def test_a_status_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    run = Run(tmp_path).write()
    run.steps[0]["attempt"] = "often"
    run.run_yaml.write_text(yaml.safe_dump(run.resource()))
    with pytest.raises(UserError, match=r"run.yaml: status.steps.0.attempt can't be read \(.*\); give the run.yaml of"):
        page_of(run)


def test_a_new_phase_that_trains_gives_curves_and_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = Phase.EVALUATE
    monkeypatch.setitem(PHASES, phase, replace(PHASES[phase], result=TrainingResult, trains=True))
    with Store(tmp_path).draft(phase.value, digest("new")) as draft:
        (draft.path / "history.json").write_bytes(history(5.0, 2.0, 60))
        result = TrainingResult(tokens_per_second=77.0, validation_sequences=4).to_json()
        made = draft.publish(config={}, inputs={}, result=result, metrics={"precision": Precision.FP32})
    reader = Reader()
    teacher = reader.teacher(reader.chain({}))
    chain = reader.chain({phase: made})
    student = reader.student(chain, None, teacher=teacher, steps=[], load=None, figures=Student(name="new"))
    assert (student.tokens_per_second, student.sequences, student.precision) == (77.0, 4, Precision.FP32.words)
    assert student.history.validation[-1] == (60.0, 2.0)
