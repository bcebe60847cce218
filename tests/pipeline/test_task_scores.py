"""The score of a model in a task is kept by itself: only what is new is scored, nothing is taken for another model."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from task_folders import DEFINITION, evaluated, fetch, write_task
from tiny import write_checkpoint

from compression_pipeline.artifact import Artifact, FileRecord, Manifest, Store
from compression_pipeline.config import EvaluateConfig, EvaluateJob, TaskConfig
from compression_pipeline.phases import task_scores
from compression_pipeline.phases.task_scores import key_of
from compression_pipeline.tasks import scoring

CALLS, MORE = {"name": "calls", "source": "file:own"}, {"name": "more", "source": "file:own"}
DEFINED = DEFINITION.replace("task: calls", "task: more").replace("Question:", "Q:")
JOB = {"run": "r", "step": "s", "attempt": 1, "fingerprint": "1" * 32, "store": "/s", "model": "m", "tasks": "t"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, seed=3)
    return folder


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks that a model was asked since the list was cleared."""
    names, whole = list[str](), scoring._evaluate

    def watched(model: Any, tokenizer: Any, found: Any, task: TaskConfig, *rest: Any) -> Any:
        names.append(task.name)
        return whole(model, tokenizer, found, task, *rest)

    monkeypatch.setattr(scoring, "_evaluate", watched)
    return names


def fetched(folder: Path, *told: dict[str, Any]) -> str:
    write_task(folder / "own")
    (folder / "own" / "more.yaml").write_text(DEFINED)
    return fetch(folder, *told).key


def test_of_tasks_that_are_edited_only_what_is_new_is_scored(
    tmp_path: Path, model: Path, scored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    [first] = evaluated(store, model, "4" * 32, fetched(tmp_path, CALLS), tasks=[CALLS]).tasks
    both = fetched(tmp_path, CALLS, MORE)
    again, more = evaluated(store, model, "5" * 32, both, tasks=[CALLS, MORE]).tasks
    assert again == first and scored == ["calls", "more"]
    assert evaluated(store, model, "6" * 32, both, tasks=[MORE, CALLS | {"limit": 5}]).tasks[0] == more
    assert scored == ["calls", "more", "calls"]
    monkeypatch.setattr("compression_pipeline.phases.evaluate.load_model", None)  # nothing is asked of a model
    whole = evaluated(store, model, "7" * 32, both, tasks=[CALLS | {"metric": "acc_norm"}])
    assert whole.tasks[0].metric == "acc_norm" and len(scored) == 3, "all metrics of a task are kept"
    files = Store(store).open("evaluate-" + "7" * 32)
    assert {name.partition(".")[0] for name in files.manifest.inputs} == {"model", "tasks", "scores"}, "for clean-up"
    one, other = (Store(store).open("evaluate-" + mark * 32).path / "scores.json" for mark in "47")
    assert one.read_bytes() == other.read_bytes()


def test_no_score_is_taken_for_another_model_task_or_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(
        *, batch: int = 8, dtype: str = "bfloat16", weights: str = "a", asked: str = "d", how: str = "FP32", **told: Any
    ) -> str:
        task = TaskConfig.model_validate(CALLS | told)
        evaluate = EvaluateConfig(tasks=[task], batch_size=batch)
        job = EvaluateJob.model_validate(JOB | {"dtype": dtype, "evaluate": evaluate})
        return key_of(job, task, artifact({"model/model.safetensors": weights}), {"data": asked}, how)

    alike = [key(), key(metric="acc_norm"), key(filter="none"), key(source=None)]
    others = [key(shots=1), key(seed=1), key(limit=1), key(name="more"), key(asked="e"), key(batch=1)]
    others += [key(dtype="float16"), key(weights="b"), key(how="BF16")]
    monkeypatch.setattr(task_scores, "harness_version", lambda: "0.5.0")
    others.append(key())
    assert len(set(alike)) == 1 and len({alike[0], *others}) == 1 + len(others)


def artifact(files: Mapping[str, str]) -> Artifact:
    records = {name: FileRecord(size=1, sha256=told) for name, told in files.items()}
    told: dict[str, Any] = {"config": {}, "inputs": {}, "result": {}, "metrics": {}, "versions": {}}
    manifest = Manifest(phase="distill", key="3" * 32, files=records, created=datetime.now(UTC), **told)
    return Artifact("distill-" + "3" * 32, Path(), manifest, "d")


def test_the_same_weights_under_another_name_are_the_same_model(tmp_path: Path, model: Path, scored: list[str]) -> None:
    """A teacher keeps its scores whatever text it is prepared with."""
    key = fetched(tmp_path, CALLS)
    for made, mark in zip("89", "45", strict=True):
        evaluated(tmp_path / "store", model, mark * 32, key, tasks=[CALLS], made=made)
    assert scored == ["calls"]


def test_a_score_that_was_damaged_or_planted_is_scored_anew(tmp_path: Path, model: Path, scored: list[str]) -> None:
    store, key = tmp_path / "store", fetched(tmp_path, CALLS)
    [first] = evaluated(store, model, "4" * 32, key, tasks=[CALLS]).tasks
    [file] = (store / "artifacts").glob("scores-*/figures.json")
    file.write_text(file.read_text().replace("12", "21"))
    [again] = evaluated(store, model, "5" * 32, key, tasks=[CALLS]).tasks
    assert again == first and scored == ["calls", "calls"]


def test_a_run_that_takes_its_own_artifacts_alone_neither_takes_nor_leaves_scores(
    tmp_path: Path, model: Path, scored: list[str]
) -> None:
    store, key = tmp_path / "store", fetched(tmp_path, CALLS)
    evaluated(store, model, "4" * 32, key, tasks=[CALLS])
    kept = sorted((store / "artifacts").glob("scores-*"))
    names = [f"tasks-{key}", "distill-" + "3" * 32]
    own = {"cache": "Run", "expected": {name: Store(store).open(name).digest for name in names}}
    evaluated(store, model, "5" * 32, key, tasks=[CALLS], job=own)
    assert scored == ["calls", "calls"] and sorted((store / "artifacts").glob("scores-*")) == kept
