"""Ranks that have stages of a model compute what one rank does that has all of it."""

import json
from typing import Any

import pytest
import torch
from checkpoints import save_model
from pruned import PRUNED
from safetensors.torch import load_file
from sharing import assert_weights_alike, run
from stores import DATA, TEACHER, common, make_store, publish

from compression_pipeline.artifact import Store

SETTINGS: dict[str, Any] = {
    "steps": 4,
    "globalBatchSize": 8,
    "microBatchSize": 2,
    "learningRate": 2e-3,
    "minLearningRate": 1e-3,
    "warmupSteps": 1,
    "checkpointInterval": 100,
    "validationInterval": 2,
}
LAYOUTS: dict[str, tuple[dict[str, int], int]] = {
    "one": ({}, 1),
    "two": ({"pipeline": 2}, 2),
    "copies": ({"pipeline": 2}, 4),
    "matrices": ({"pipeline": 2, "tensor": 2}, 4),
}
"""How a copy is split, and over how many ranks."""
FOUR = {"llama3": "copies", "qwen2-tied": "matrices", "logits": "copies", "states": "matrices"}
"""What four ranks do beside sharing layers, for each kind of teacher and of loss."""
KINDS = "llama3", "qwen2-tied"
MOVED = {"llama3": ("two", "one"), "qwen2-tied": ("one", "matrices")}
"""Layouts that a training begins and ends in."""


def job(store: Store, step: str, split: dict[str, int], ranks: int, **fields: Any) -> dict[str, Any]:
    return {
        **common(store, step),
        "data": DATA,
        "teacher": TEACHER,
        "sequence_length": 32,
        "parallelism": split,
        "processes_per_node": ranks,
        "validation": {"samples": 11},
        **fields,
    }


STATES: dict[str, Any] = {"type": "HiddenStates", "balance": "Dynamic"}
LOSSES: dict[str, list[dict[str, Any]]] = {
    "logits": [{"type": "LogitsKL", "temperature": 2.0}, {"type": "CrossEntropy", "weight": 0.1}],
    # Layers on the same stage, on different ones, and where one stage ends; the embeddings, on the first.
    "states": [
        {"type": "LogitsKL"},
        {
            **STATES,
            "layerMap": [{"student": 1, "teacher": 4}, {"student": 3, "teacher": 2}, {"student": 2, "teacher": 3}],
        },
        {"type": "Embeddings", "balance": "Dynamic"},
    ],
}
"""What is minimized, by a word."""
STUDENT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 12}


def published(store: Store, phase: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    artifact = store.open(f"{phase}-" + "0" * 32)
    history = json.loads((artifact.path / "history.json").read_text())
    return history, load_file(artifact.model / "model.safetensors")


def assert_alike(store: Store, reference: Store, phase: str) -> None:
    """Losses, gradient norms, validations and weights agree within float32's rounding."""
    (found, weights), (expected, others) = published(store, phase), published(reference, phase)
    for what in ("loss", "gradientNorm"):
        assert [entry[what] for entry in found["train"]] == pytest.approx(
            [entry[what] for entry in expected["train"]], rel=1e-5
        ), what
    losses = [[entry["loss"] for entry in history["validation"]] for history in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert_weights_alike(weights, others, SETTINGS["learningRate"])


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Store]:
    """Teachers of five layers, which two stages do not share evenly, corrected in each layout."""
    found: dict[tuple[str, str], Store] = {}
    runs: list[dict[str, Any]] = []
    for kind in KINDS:
        for layout in ("one", "two", FOUR[kind]):
            split, ranks = LAYOUTS[layout]
            store = found[kind, layout] = make_store(tmp_path_factory.mktemp(kind), kind, num_hidden_layers=5)
            told = job(store, "finetune", split, ranks, finetune=SETTINGS)
            runs.append({"ranks": ranks, "phase": {"name": "finetune", "job": told}})
    for kind, (first, then) in MOVED.items():
        # Killed after a checkpoint, whatever rank it is; what goes on is split otherwise.
        store = found[kind, "moved"] = make_store(tmp_path_factory.mktemp(kind), kind, num_hidden_layers=5)
        settings = {**SETTINGS, "checkpointInterval": 2}
        for attempt, layout in ((1, first), (2, then)):
            split, ranks = LAYOUTS[layout]
            told = job(store, "finetune", split, ranks, attempt=attempt, finetune=settings)
            course = {"killed_at": 3} if attempt == 1 else {"first": 2}
            runs.append({"ranks": ranks, "phase": {"name": "finetune", "job": told, **course}, "fails": attempt == 1})
    run(runs)
    return found


@pytest.mark.parametrize(
    ("kind", "layout"), [(kind, layout) for kind in KINDS for layout in ("two", FOUR[kind], "moved")]
)
def test_a_teacher_is_corrected_as_by_one_rank(kind: str, layout: str, finetuned: dict[tuple[str, str], Store]) -> None:
    assert_alike(finetuned[kind, layout], finetuned[kind, "one"], "finetune")


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Store]:
    """Narrower students of three layers of a teacher of five, in each layout."""
    found: dict[tuple[str, str], Store] = {}
    runs: list[dict[str, Any]] = []
    for losses, kind in (("logits", "qwen2-tied"), ("states", "llama3")):
        for layout in ("one", "two", FOUR[losses]):
            split, ranks = LAYOUTS[layout]
            store = found[losses, layout] = make_store(tmp_path_factory.mktemp(losses), kind, num_hidden_layers=5)
            publish(store, PRUNED, lambda path, kind=kind: save_model(path / "model", kind, seed=1, **STUDENT))
            settings = {**SETTINGS, "losses": LOSSES[losses]}
            told = job(store, "distill-width", split, ranks, pruned=PRUNED, distill=settings)
            runs.append({"ranks": ranks, "phase": {"name": "distill", "job": told}})
    run(runs)
    return found


@pytest.mark.parametrize(
    ("losses", "layout"), [(losses, layout) for losses in LOSSES for layout in ("two", FOUR[losses])]
)
def test_a_student_is_distilled_as_by_one_rank(
    losses: str, layout: str, distilled: dict[tuple[str, str], Store]
) -> None:
    store, reference = distilled[losses, layout], distilled[losses, "one"]
    assert_alike(store, reference, "distill")
    proofs = [load_file(of.open("distill-" + "0" * 32).path / "reference.safetensors") for of in (store, reference)]
    for name, expected in proofs[1].items():
        torch.testing.assert_close(proofs[0][name], expected, rtol=1e-4, atol=1e-4)
