"""Ranks that share matrices compute what one rank does that has them whole, and go on from each other's checkpoints.

All of it is computed by one group of processes; the tests compare what that has left.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import assert_same_run, copy_of
from pruned import DISTILLED, PRUNED, prune_job
from safetensors.torch import load_file
from sharing import assert_weights_alike, run
from stores import DATA, TEACHER, common, make_store

from compression_pipeline.artifact import Store
from compression_pipeline.reference_logits import Reference

SETTINGS = {
    "steps": 4,
    "globalBatchSize": 8,
    "microBatchSize": 2,
    "learningRate": 2e-3,
    "minLearningRate": 1e-3,
    "warmupSteps": 1,
    "checkpointInterval": 2,
    "validationInterval": 2,
}
LAYOUTS = {"1": (1, 1), "2": (2, 2), "2x2": (2, 4), "4": (4, 4)}
"""Ranks that share matrices, and all ranks; the rest is data parallel."""

MODELS = {"llama3": ("2", "2x2"), "qwen2-tied": ("4",), "qwen3": ("2",), "nemotron": ("2",)}
"""Kind of teacher -> layouts that train it, beside one rank."""

LOSSES: list[dict[str, Any]] = [
    {"type": "LogitsKL", "temperature": 2},
    {"type": "CrossEntropy", "weight": 0.3},
    {"type": "LogitsTopKKL", "topK": 7, "weight": 0.5},
    {"type": "HiddenStates", "distance": "Cosine", "balance": "Dynamic"},
    {"type": "Embeddings", "distance": "MSE"},
]


def layout(name: str) -> dict[str, Any]:
    tensor, ranks = LAYOUTS[name]
    return {"parallelism": {"tensor": tensor}, "processes_per_node": ranks}


def finetune(store: Store, name: str, attempt: int = 1, **told: Any) -> dict[str, Any]:
    job = {
        **common(store, "finetune", attempt=attempt),
        **layout(name),
        "data": DATA,
        "teacher": TEACHER,
        "sequence_length": 32,
        "finetune": SETTINGS,
        "validation": {},
    }
    return {"ranks": LAYOUTS[name][1], "phase": {"name": "finetune", "job": job, **told}}


def distill(store: Store, name: str) -> dict[str, Any]:
    job = {
        **common(store, "distill-width", DISTILLED),
        **layout(name),
        "data": DATA,
        "teacher": TEACHER,
        "pruned": PRUNED,
        "sequence_length": 32,
        "distill": SETTINGS | {"losses": LOSSES, "keepBest": "validationLoss"},
        "validation": {"samples": 6},
    }
    return {"ranks": LAYOUTS[name][1], "phase": {"name": "distill", "job": job}}


Stores = dict[str, Store]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """What each work has left, by its name."""
    root = tmp_path_factory.mktemp("sharing")
    found: Stores = {}
    works: list[dict[str, Any]] = [{"ranks": ranks, "call": "vocabulary:check_losses"} for ranks in (2, 4)]
    for kind, layouts in MODELS.items():
        made = make_store(root / kind, kind, **({"num_key_value_heads": 4} if "4" in layouts else {}))
        for name in ("1", *layouts):
            found[f"{kind} {name}"] = copy_of(made, root / f"{kind}-{name}")
            works.append(finetune(found[f"{kind} {name}"], name))
    made = Store(root / "llama3")
    for name in ("1", "2"):  # killed after the checkpoint of step 2
        store = found[f"killed {name}"] = copy_of(made, root / f"killed-{name}")
        works.append(finetune(store, name, killed_at=3) | {"fails": True})
    for first, then in (("2", "2"), ("2", "1"), ("1", "2x2")):
        store = found[f"{first} to {then}"] = Store(root / f"{first}-to-{then}")
        works += [{"copy": [str(root / f"killed-{first}"), str(store.root)]}, finetune(store, then, 2, first=2)]
    made = copy_of(made, root / "pruned")
    works.append({"ranks": 1, "phase": {"name": "prune", "job": prune_job(made).to_json()}})
    for name in ("1", "2x2"):
        store = found[f"distilled {name}"] = Store(root / f"distilled-{name}")
        works += [{"copy": [str(made.root), str(store.root)]}, distill(store, name)]
    run(works)
    return found


def published(store: Store, phase: str = "finetune", key: str = "0" * 32) -> tuple[dict[str, Any], Path]:
    artifact = store.open(f"{phase}-{key}")
    return json.loads((artifact.path / "history.json").read_text()), artifact.path


def assert_equal(found: tuple[dict[str, Any], Path], expected: tuple[dict[str, Any], Path]) -> None:
    """Losses, gradient norms, validations and weights within the tolerance of float32 sums in another order."""
    for what in ("loss", "gradientNorm"):
        mine, theirs = ([entry[what] for entry in history["train"]] for history, _ in (found, expected))
        assert mine == pytest.approx(theirs, rel=2e-5), what
    mine, theirs = ([entry["loss"] for entry in history["validation"]] for history, _ in (found, expected))
    assert mine == pytest.approx(theirs, rel=2e-5)
    mine, theirs = (load_file(path / "model" / "model.safetensors") for _, path in (found, expected))
    assert_weights_alike(mine, theirs, SETTINGS["learningRate"])


@pytest.mark.parametrize("kind,name", [(kind, name) for kind, names in MODELS.items() for name in names])
def test_a_teacher_is_corrected_as_by_one_rank(stores: Stores, kind: str, name: str) -> None:
    assert_equal(published(stores[f"{kind} {name}"]), published(stores[f"{kind} 1"]))


def test_a_student_is_distilled_as_by_one_rank(stores: Stores) -> None:
    found, expected = (published(stores[f"distilled {one}"], "distill", DISTILLED) for one in ("2x2", "1"))
    assert_equal(found, expected)
    mine, theirs = (Reference.read(path) for _, path in (found, expected))
    for dtype, logits in theirs.logits.items():
        torch.testing.assert_close(mine.logits[dtype], logits, rtol=1e-2, atol=2e-2 if "16" in dtype.value else 1e-3)


def test_ranks_that_were_killed_go_on_to_the_last_bit(stores: Stores) -> None:
    assert_same_run(stores["2 to 2"], stores["llama3 2"])


@pytest.mark.parametrize("change", ["2 to 1", "1 to 2x2"])
def test_a_checkpoint_is_read_by_another_layout(stores: Stores, change: str) -> None:
    assert_equal(published(stores[change]), published(stores["llama3 1"]))
