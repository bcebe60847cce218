"""Scores are an artifact of their own: another shape of the same teacher is cut without a forward pass."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stores import DATA, TEACHER, Recorder, common, context, make_store

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import (
    Aggregation,
    AggregationConfig,
    Cache,
    ImportanceConfig,
    PruneConfig,
    PruneJob,
    PruneResult,
)
from compression_pipeline.errors import UserError
from compression_pipeline.phases import prune as phase
from compression_pipeline.store.trust import Trust

NARROW = PruneConfig(hidden_size=32, divisor=16, calibration_samples=9)
SHALLOW = PruneConfig(ffn_hidden_size=64, layers=2, divisor=16, calibration_samples=9)


pytestmark = pytest.mark.usefixtures("shared_engine")


def run(store: Store, prune: PruneConfig, mark: str, trust: Trust | None = None) -> tuple[Artifact, Recorder]:
    told, recorder = context(store, mark * 32)
    told.store.trust = trust or Trust()
    job = PruneJob(
        **common(store, "prune-width", mark * 32), data=DATA, teacher=TEACHER, sequence_length=32, prune=prune
    )
    phase.run(job, told)
    return store.open(f"prune-{mark * 32}"), recorder


def said(recorder: Recorder, event: str) -> list[Any]:
    return [seen for seen in recorder.seen if seen["event"] == event]


def scores_in(store: Store) -> list[Path]:
    return sorted(store.artifacts.glob("scores-*"))


def importance(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.path / "importance.safetensors")


def test_another_shape_is_cut_without_a_forward_pass(tmp_path: Path) -> None:
    store = make_store(tmp_path / "shared")
    first, measured = run(store, NARROW, "1")
    assert said(measured, "progress") and first.manifest.metrics["scoresReused"] == []
    second, reused = run(store, SHALLOW, "2")
    assert not said(reused, "progress")
    assert [event["message"].partition(" was")[0] for event in said(reused, "info")] == [
        "scores reused: ActivationMagnitude",
        "scores reused: BlockInfluence",
    ]
    metrics = second.manifest.metrics
    assert metrics["scoresReused"] == ["ActivationMagnitude", "BlockInfluence"]
    results = [made.result(PruneResult).scores_reused for made in (first, second)]
    assert results == [False, True]
    assert metrics["calibrationSamples"] == 9 and "importanceSeconds" not in metrics
    named = {name for role, name in second.manifest.inputs.items() if role.startswith("scores.")}
    assert named == {path.name for path in scores_in(store)}

    alone, _ = run(make_store(tmp_path / "alone"), SHALLOW, "2")
    kept = ("chosen.json", "importance.safetensors", "importance.html", "model/model.safetensors")
    assert all((second.path / file).read_bytes() == (alone.path / file).read_bytes() for file in kept)


def test_what_was_measured_otherwise_is_measured_anew_and_nothing_else(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    run(store, NARROW, "1")
    variance = ImportanceConfig(aggregation=AggregationConfig(sequence=Aggregation.VARIANCE))
    other, _ = run(store, NARROW.model_copy(update={"importance": variance}), "2")
    assert other.manifest.metrics["scoresReused"] == ["BlockInfluence"]
    more, _ = run(store, NARROW.model_copy(update={"calibration_samples": 8}), "3")
    assert more.manifest.metrics["scoresReused"] == []
    assert len(scores_in(store)) == 5

    shutil.rmtree(store.artifacts / TEACHER)
    shutil.move(make_store(tmp_path / "other", seed=5).artifacts / TEACHER, store.artifacts / TEACHER)
    anew, _ = run(store, NARROW, "4")  # another teacher by the same name
    assert anew.manifest.metrics["scoresReused"] == []


def test_damaged_scores_are_set_aside_and_measured_anew(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    first, _ = run(store, NARROW, "1")
    for path in scores_in(store):
        content = (path / "scores.safetensors").read_bytes()
        (path / "scores.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second, recorder = run(store, NARROW, "2")
    assert len(said(recorder, "warning")) == 2
    assert second.manifest.metrics["scoresReused"] == []
    assert all(torch.equal(tensor, importance(second)[axis]) for axis, tensor in importance(first).items())
    third, _ = run(store, NARROW, "3")
    assert len(third.manifest.metrics["scoresReused"]) == 2


def test_a_run_that_trusts_only_its_own_takes_none_and_leaves_none(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    run(store, NARROW, "1")
    for path in scores_in(store):
        shutil.rmtree(path)
    own = {name: store.open(name).digest for name in (DATA, TEACHER)}
    run(store, NARROW, "2", Trust(Cache.RUN, own, frozenset()))
    assert not scores_in(store)
    run(store, NARROW, "3")
    mine, _ = run(store, SHALLOW, "4", Trust(Cache.RUN, own, frozenset()))
    assert mine.manifest.metrics["scoresReused"] == [] and len(scores_in(store)) == 2


def test_who_publishes_second_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prunes at once: both measure, and the first to publish wins."""
    store = make_store(tmp_path)
    run(store, NARROW, "1")
    before = [(path / "manifest.json").read_bytes() for path in scores_in(store)]
    told, _ = context(store, "2" * 32)
    look = told.store.find
    looked: list[str] = []

    def late(name: str) -> Artifact | None:
        looked.append(name)
        hidden = name.startswith("scores-") and looked.count(name) == 1
        return None if hidden else look(name)

    monkeypatch.setattr(told.store, "find", late)
    job = PruneJob(
        **common(store, "prune-width", "2" * 32), data=DATA, teacher=TEACHER, sequence_length=32, prune=SHALLOW
    )
    phase.run(job, told)
    assert store.open("prune-" + "2" * 32).manifest.metrics["scoresReused"] == []
    assert [(path / "manifest.json").read_bytes() for path in scores_in(store)] == before
    assert not list(store.artifacts.glob(".damaged-*"))


def test_the_variance_over_one_sequence_is_refused(tmp_path: Path) -> None:
    varies = ImportanceConfig(aggregation=AggregationConfig(batch=Aggregation.VARIANCE))
    with pytest.raises(UserError, match=r"training text is one sequence.*prune\.importance\.aggregation\.batch"):
        run(make_store(tmp_path, tokens=40), NARROW.model_copy(update={"importance": varies}), "1")


def test_blocks_that_the_first_of_several_cuts_did_not_need_are_measured_for_one_that_does(tmp_path: Path) -> None:
    """Three layers at once need the loss without each block of three; one layer at a time doesn't."""
    store = make_store(tmp_path, num_hidden_layers=4)
    by_loss = ImportanceConfig(depth="LMLoss", depth_samples=4)
    once = PruneConfig(layers=1, divisor=16, calibration_samples=9, importance=by_loss)
    run(store, once.model_copy(update={"iterations": 3}), "1")
    at_once, _ = run(store, once, "2")
    assert "LMLoss" not in at_once.manifest.metrics["scoresReused"]
    assert 3 in importance(at_once)["layers.blocks"][:, 1]
