"""A distillation of two ranks: the best weights, which rank 0 alone reads, and the extension, which both decide on."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import python
from meeting import Meeting
from pruned import pruned_store
from safetensors.torch import load_file
from task_folders import fetch_task

CODE = """
    import json, os, sys
    from pathlib import Path
    from pruned import PRUNED
    from stores import DATA, TEACHER, common, context
    from compression_pipeline.artifact import Store
    from compression_pipeline.config import DistillJob
    from compression_pipeline.huggingface import conversion
    from compression_pipeline.phases import distill

    rank = int(os.environ["RANK"])
    read = []
    opened = conversion.CheckpointReader.__init__
    conversion.CheckpointReader.__init__ = lambda self, folder: (read.append(str(folder)), opened(self, folder))[1]
    store = Store(Path(sys.argv[1]))
    told = json.loads(sys.argv[2])
    mark = "2" * 32
    job = DistillJob.model_validate(
        {**common(store, "distill-width", mark), "data": DATA, "teacher": TEACHER, "pruned": PRUNED,
         "sequence_length": 32, "processes_per_node": 2, **told}
    )
    result = distill.run(job, context(store, mark)[0])
    best = [name for name in read if "/best/" in name]
    print(json.dumps({"rank": rank, "best": len(best), "result": result.to_json()}))
    """


pytestmark = pytest.mark.usefixtures("shared_engine")


def ranks(store: Path, **told: Any) -> list[dict[str, Any]]:
    """What each of two ranks ends with."""
    with closing(Meeting(2)) as meeting:
        code = f"import sys; sys.argv[1:] = {[str(store), json.dumps(told)]!r}" + CODE.replace("\n    ", "\n")
        started = [python(code, RANK=str(rank), **meeting.environment) for rank in range(2)]
        ended = [process.communicate(timeout=540) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    return [json.loads(output.strip().splitlines()[-1]) for output, _ in ended]


def test_rank_0_alone_reads_the_best_weights_and_both_train_on(tmp_path: Path) -> None:
    store = pruned_store(tmp_path)
    rising = {
        "steps": 3,
        "globalBatchSize": 8,
        "microBatchSize": 4,
        "learningRate": 0.9,  # so the first step is the best
        "minLearningRate": 0.5,
        "warmupSteps": 0,
        "validationInterval": 1,
        "keepBest": "validationLoss",
        "taskInterval": 2,
    }
    scored = {
        "tasks": fetch_task(tmp_path / "tasks", store.root),
        "scoring": {"tasks": [{"name": "calls"}]},
        "dtype": "float32",
    }
    both = ranks(
        store.root,
        **scored,
        distill=rising,
        validation={"samples": 6},
        accept={"maxValidationLoss": 1, "extendSteps": 2},
    )
    assert [rank["best"] for rank in both] == [1, 0]
    result = store.open("distill-" + "2" * 32)
    history = json.loads((result.path / "history.json").read_text())
    assert history["totalSteps"] == 5 and [entry["step"] for entry in history["train"]] == [1, 2, 3, 4, 5]
    assert [entry["step"] for entry in history["scores"]] == [0, 2, 3, 4, 5]
    scores = {entry["step"]: entry["score"] for entry in history["scores"]}
    losses = {entry["step"]: entry["loss"] for entry in history["validation"] if entry["step"]}
    best = min(losses, key=lambda step: losses[step])
    assert best < 5, "the best weights had to be read"
    for rank in both:
        told = rank["result"]
        assert told["taskScores"] == ({"calls": scores[best]} if best in scores else {})
        assert (told["bestStep"], told["extendedSteps"], told["distilledLoss"]) == (best, 2, losses[best])
    weights = load_file(result.model / "model.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
