"""A student that prune made, and the job that distils it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stores import DATA, TEACHER, common, context, make_store

from compression_pipeline.artifact import Store
from compression_pipeline.config import DistillConfig, DistillJob, PruneConfig, PruneJob, ValidationConfig
from compression_pipeline.phases import prune

PRUNED = "prune-" + "1" * 32
DISTILLED = "2" * 32

NARROW = {"hidden_size": 32, "ffn_hidden_size": 64}


def pruned_store(root: Path, kind: str = "llama3", sizes: Mapping[str, int] = NARROW, **fields: Any) -> Store:
    """A store with data, a teacher, and a student of these sizes pruned out of it."""
    store = make_store(root, kind, **fields)
    prune.run(prune_job(store, sizes), context(store, "1" * 32)[0])
    return store


def prune_job(store: Store, sizes: Mapping[str, int] = NARROW) -> PruneJob:
    """Make `PRUNED`."""
    student = PruneConfig.model_validate({**sizes, "divisor": 16, "calibration_samples": 8})
    return PruneJob(
        **common(store, "prune-width", "1" * 32), data=DATA, teacher=TEACHER, sequence_length=32, prune=student
    )


def distill_job(store: Store, settings: DistillConfig, attempt: int = 1, **fields: Any) -> DistillJob:
    """Distil the student of `pruned_store`; `fields`: the job's others."""
    return DistillJob(
        **common(store, "distill-width", DISTILLED, attempt),
        data=DATA,
        teacher=TEACHER,
        pruned=PRUNED,
        sequence_length=32,
        distill=settings,
        validation=ValidationConfig(samples=6),
        **fields,
    )
