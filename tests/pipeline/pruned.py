"""A student that prune made, to distil."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stores import DATA, TEACHER, common, context, make_store

from compression_pipeline.artifact import Store
from compression_pipeline.config import PruneConfig, PruneJob
from compression_pipeline.phases import prune

PRUNED = "prune-" + "1" * 32


NARROW = {"hidden_size": 32, "ffn_hidden_size": 64}


def pruned_store(root: Path, kind: str = "llama3", sizes: Mapping[str, int] = NARROW, **fields: Any) -> Store:
    """A store with data, a teacher, and a student of these sizes pruned out of it."""
    store = make_store(root, kind, **fields)
    student = PruneConfig.model_validate({**sizes, "divisor": 16, "calibration_samples": 8})
    job = PruneJob(
        **common(store, "prune-width", "1" * 32), data=DATA, teacher=TEACHER, sequence_length=32, prune=student
    )
    prune.run(job, context(store, "1" * 32)[0])
    return store
