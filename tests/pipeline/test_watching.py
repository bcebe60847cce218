"""Tasks that a student is scored by while it is distilled: they are told, choose the best, and disturb nothing."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from meeting import Meeting
from pruned import PRUNED, pruned_store
from safetensors.torch import load_file
from stores import DATA, TEACHER, Recorder, common, context
from task_folders import fetch_task

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    CONFIG_VARIABLE,
    DistillConfig,
    DistillJob,
    DistillResult,
    EvaluateConfig,
    ExportDtype,
    TaskConfig,
    TaskScore,
    ValidationConfig,
    semantic_fields,
)
from compression_pipeline.engines.history import History, ValidationEntry
from compression_pipeline.errors import Interrupted, PhaseError
from compression_pipeline.phases import distill as phase
from compression_pipeline.phases.snapshots import is_whole

DISTILLED = "2" * 32
NAME = f"distill-{DISTILLED}"
SETTINGS: dict[str, Any] = {
    "steps": 5,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 1,
    "checkpoint_interval": 4,
    "validation_interval": 10,
}
WATCHED = {"task_interval": 2}


class StoppingWhere(Recorder):
    """Raises the flag of a context once this is told."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.flag: Any = None

    def _write(self, event: str, **fields: Any) -> None:
        super()._write(event, **fields)
        if self._text in str(fields.get("message", "")):
            self.flag.raised = True


pytestmark = pytest.mark.usefixtures("shared_engine")


def job(store: Store, tasks: str | None, attempt: int = 1, **settings: Any) -> DistillJob:
    scoring = EvaluateConfig(tasks=[TaskConfig(name="calls", shots=1)], batch_size=4)
    return DistillJob(
        **common(store, "distill-width", DISTILLED, attempt),
        data=DATA,
        teacher=TEACHER,
        pruned=PRUNED,
        sequence_length=32,
        distill=DistillConfig(**(SETTINGS | settings)),
        validation=ValidationConfig(samples=6),
        tasks=tasks,
        scoring=scoring if tasks else None,
        dtype=ExportDtype.BFLOAT16 if tasks else None,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return pruned_store(tmp_path / "store")


@pytest.fixture
def tasks(tmp_path: Path, store: Store) -> str:
    return fetch_task(tmp_path, store.root)


def distilled(store: Store, tasks: str | None, **settings: Any) -> tuple[DistillResult, Recorder]:
    told, events = context(store, DISTILLED)
    return phase.run(job(store, tasks, **settings), told), events


def outcome(store: Store) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The published history without the speed, and the weights; they are then forgotten."""
    made = store.open(NAME)
    history = json.loads((made.path / "history.json").read_text())
    for entry in history["train"]:
        del entry["tokensPerSecond"]
    weights = load_file(made.model / "model.safetensors")
    shutil.rmtree(made.path)
    store.remove_attempts(DISTILLED)
    return history, weights


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_scores_are_told_and_neither_they_nor_an_interruption_change_a_bit(store: Store, tasks: str) -> None:
    result, events = distilled(store, tasks, **WATCHED)
    metrics = [(seen["name"], seen["step"]) for seen in events.seen if seen["event"] == "metric" and "step" in seen]
    assert [step for name, step in metrics if name == "calls"] == [0, 2, 4, 5]
    newest = [seen["scores"] for seen in events.seen if seen["event"] == "progress" and "scores" in seen]
    history, weights = outcome(store)
    scores = {entry["step"]: entry["score"] for entry in history["scores"]}
    assert list(scores) == [0, 2, 4, 5] and {entry["name"] for entry in history["scores"]} == {"calls"}
    assert newest[-1] == {"calls": scores[4]}
    assert result.task_scores == {"calls": scores[5]} and result.best_step is None

    stopping = StoppingWhere("scores calls after step 2")
    told, _ = context(store, DISTILLED)
    told.events, stopping.flag = stopping, told.stop
    with pytest.raises(Interrupted, match="after step 2; it is in a checkpoint"):
        phase.run(job(store, tasks, **WATCHED), told)
    again, seen = context(store, DISTILLED, attempt=2)
    phase.run(job(store, tasks, attempt=2, **WATCHED), again)
    assert [one["step"] for one in seen.seen if one["event"] == "metric" and one["name"] == "calls"] == [2, 4, 5]
    resumed, resumed_weights = outcome(store)
    assert resumed == history and same(resumed_weights, weights)

    distilled(store, None)
    plain, plain_weights = outcome(store)
    assert same(plain_weights, weights), "scoring draws no random number of the training's"
    assert plain == {name: value for name, value in history.items() if name != "scores"}

    best, _ = distilled(store, tasks, **WATCHED, keep_best="calls")
    chosen, chosen_weights = outcome(store)
    after = History.from_json(history | {"validation": chosen["validation"], "train": []})
    winner = after.ranked("calls")[0]
    assert (best.best_step, best.best_score, best.distilled_loss) == (winner.step, scores[winner.step], winner.loss)
    assert same(chosen_weights, weights) == (winner.step == 5)


def test_checkpoints_on_the_way_load_and_change_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    settings = {"export_every": 1, "export_keep": 2}
    folder = store.work_folder(DISTILLED) / "exports"
    half = folder / "step-00000001.tmp"
    half.mkdir(parents=True)
    _, events = distilled(store, None, **settings)
    _, weights = outcome(store)
    told = [(seen["step"], seen.get("exportedStep")) for seen in events.seen if seen["event"] == "progress"]
    assert told == [(1, None), (2, 1), (3, 2), (4, 3), (5, 4)], "the newest of them is a part of the progress"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000004"]
    newest = folder / "step-00000004"
    assert "after step 4 of 5" in (newest / "README.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(newest).state_dict()
    assert weights.keys() <= loaded.keys() and not same(load_file(newest / "model.safetensors"), weights)

    stopping, (told, _) = StoppingWhere("after step 2"), context(store, DISTILLED)
    abandoned = folder / "step-00000009"
    shutil.copytree(newest, abandoned)
    told.events, stopping.flag = stopping, told.stop
    with pytest.raises(Interrupted):
        phase.run(job(store, None, **settings), told)
    assert sorted(path.name for path in folder.iterdir())[-1] == abandoned.name, "this launch may come to it"
    assert (folder / "step-00000002").exists() or (folder / "step-00000003").exists()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shutil.rmtree(folder)
    monkeypatch.setattr("compression_pipeline.phases.snapshots.sync", full)
    with pytest.raises(PhaseError, match="space"):
        distilled(store, None, **settings)
    assert list(folder.iterdir()) == []


KILLED_AMID_AN_EXPORT = """
import os, runpy, signal
from compression_pipeline.phases import snapshots

write = snapshots.write_checkpoint

def half(tensors, student, folder, **told):
    write(tensors, student, folder, **told)
    if folder.name.startswith("step-00000004"):
        file = folder / "model.safetensors"
        os.truncate(file, file.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

snapshots.write_checkpoint = half
runpy.run_module("compression_pipeline.worker", run_name="__main__", alter_sys=True)
"""


def test_a_kill_amid_an_export_leaves_nothing_under_its_name_and_the_export_is_made_again(
    store: Store, tmp_path: Path
) -> None:
    settings = {"export_every": 2, "checkpoint_interval": 3, "log_interval": 1}
    undisturbed = Store(tmp_path / "undisturbed")
    shutil.copytree(store.root, undisturbed.root)
    meeting = Meeting(1)
    environment = os.environ | meeting.environment | {"RANK": "0", "LOCAL_RANK": "0"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AMID_AN_EXPORT, "distill"],
        env=environment | {CONFIG_VARIABLE: json.dumps(job(store, None, **settings).to_json())},
        capture_output=True,
        check=False,
    )
    meeting.close()
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = store.work_folder(DISTILLED) / "exports"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004.tmp"]

    again, events = context(store, DISTILLED, attempt=2)
    phase.run(job(store, None, attempt=2, **settings), again)
    told = [(seen["step"], seen["exportedStep"]) for seen in events.seen if seen["event"] == "progress"]
    assert told == [(4, 2), (5, 4)], "it went on from step 3"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]
    distilled(undisturbed, None, **settings)
    expected = undisturbed.work_folder(DISTILLED) / "exports"
    for name in ("step-00000002", "step-00000004"):
        assert is_whole(folder / name)
        assert same(*(load_file(exports / name / "model.safetensors") for exports in (folder, expected)))


def test_what_is_only_watched_shapes_nothing() -> None:
    def key(**fields: Any) -> Any:
        return semantic_fields(DistillConfig(steps=50, warmup_steps=1, **fields))

    assert key(task_interval=5, tasks=["a"]) == key(task_interval=7) == key()
    assert key(export_every=5, export_keep=2) == key()
    loss = {"keep_best": "validationLoss"}
    assert key(task_interval=5, **loss) == key(**loss)
    assert key(task_interval=5, keep_best="a") != key(task_interval=7, keep_best="a")
    assert key(task_interval=5, keep_best="a", validation_interval=9) == key(task_interval=5, keep_best="a")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1), st.booleans())
def test_the_best_by_a_task_has_the_best_score_then_the_lower_loss_then_is_the_earlier(
    found: list[tuple[int, int]], higher_is_better: bool
) -> None:
    history = History(len(found))
    for step, (score, loss) in enumerate(found):
        told = TaskScore(name="a", metric="acc", score=score, samples=9, higher_is_better=higher_is_better)
        history.add_scores(step, [told])
        history.add_validation(ValidationEntry(step, loss))
    best = history.best("a")
    assert (best is None) == (len(found) == 1)
    if best is not None:
        sign = -1 if higher_is_better else 1
        assert best.step == min(range(1, len(found)), key=lambda step: (sign * found[step][0], found[step][1], step))
    assert history.best("b") is None
    assert History.from_json(history.to_json()) == history
