"""Ranks that have stages of a model compute what one rank does that has all of it."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sharing import run_phases
from stores import DATA, TEACHER, common, make_store

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
LAYOUTS = {"1": (1, 1), "2": (2, 2), "2x2": (2, 4)}
"""(stages, ranks)."""
KINDS = "llama3", "qwen2-tied"


def job(store: Store, step: str, stages: int, ranks: int, **fields: Any) -> dict[str, Any]:
    return {
        **common(store, step),
        "data": DATA,
        "teacher": TEACHER,
        "sequence_length": 32,
        "parallelism": {"pipeline": stages},
        "processes_per_node": ranks,
        "validation": {"samples": 11},
        **fields,
    }


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
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        # A bias of keys moves all scores of a row alike: its gradient is rounding alone, which Adam makes a step of.
        atol = SETTINGS["learningRate"] if name.endswith("k_proj.bias") else 2e-5
        torch.testing.assert_close(weight, others[name], rtol=1e-4, atol=atol)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Store]:
    """Teachers of five layers, which two stages do not share evenly, corrected in each layout."""
    found: dict[tuple[str, str], Store] = {}
    runs: list[dict[str, Any]] = []
    for kind in KINDS:
        for layout, (stages, ranks) in LAYOUTS.items():
            store = found[kind, layout] = make_store(tmp_path_factory.mktemp(kind), kind, num_hidden_layers=5)
            told = job(store, "finetune", stages, ranks, finetune=SETTINGS)
            runs.append({"phase": "finetune", "ranks": ranks, "job": told})
    run_phases(runs)
    return found


@pytest.mark.parametrize("layout", ["2", "2x2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_corrected_as_by_one_rank(kind: str, layout: str, finetuned: dict[tuple[str, str], Store]) -> None:
    assert_alike(finetuned[kind, layout], finetuned[kind, "1"], "finetune")
