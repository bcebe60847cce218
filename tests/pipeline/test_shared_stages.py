"""Ranks that share the matrices of a stage, and stages that share a model: both at once."""

from typing import Any

import pytest
from finetuning import copy_of
from pruned import DISTILLED, prune_job
from sharing import run
from stores import make_store
from test_tensor_parallel import Stores, assert_equal, distill, finetune, published

from compression_pipeline.artifact import Store


def split(work: dict[str, Any]) -> dict[str, Any]:
    """The work by two stages of two ranks each."""
    work["phase"]["job"]["parallelism"] = {"tensor": 2, "pipeline": 2}
    return work


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """What each work has left, by its name; the embeddings are tied, so that two stages have them."""
    root = tmp_path_factory.mktemp("stages")
    made = make_store(root / "made", "llama3", num_hidden_layers=4, tie_word_embeddings=True)
    found = {name: copy_of(made, root / name) for name in ("alone", "split", "moved", "cut")}
    works = [finetune(found["alone"], "1"), split(finetune(found["split"], "4"))]
    works += [split(finetune(found["moved"], "4", killed_at=3)) | {"fails": True}]
    works += [finetune(found["moved"], "1", 2, first=2)]
    works += [{"ranks": 1, "phase": {"name": "prune", "job": prune_job(found["cut"]).to_json()}}]
    for name in ("distilled alone", "distilled split"):
        store = found[name] = Store(root / name)
        works += [{"copy": [str(found["cut"].root), str(store.root)]}]
    works += [distill(found["distilled alone"], "1"), split(distill(found["distilled split"], "4"))]
    run(works)
    return found


@pytest.mark.parametrize("name", ["split", "moved"])
def test_a_teacher_is_corrected_as_by_one_rank_which_goes_on_from_their_checkpoint(stores: Stores, name: str) -> None:
    assert_equal(published(stores[name]), published(stores["alone"]))


def test_a_student_is_distilled_as_by_one_rank(stores: Stores) -> None:
    found, expected = (published(stores[f"distilled {one}"], "distill", DISTILLED) for one in ("split", "alone"))
    assert_equal(found, expected)
