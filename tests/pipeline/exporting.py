"""A student that the real phases made, and exports of it."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from stores import DATA, TEACHER, common, context, make_store

from compression_pipeline.artifact import Artifact, Store
from compression_pipeline.config import (
    DistillConfig,
    DistillJob,
    ExportConfig,
    ExportJob,
    ExportResult,
    PruneConfig,
    PruneJob,
    ValidationConfig,
)
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import distill, export, prune

PRUNED, DISTILLED, EXPORTED = "1" * 32, "2" * 32, "3" * 32


STUDENT = PruneConfig(hidden_size=32, ffn_hidden_size=64, drop_layers=[2], divisor=16, calibration_samples=8)


def student_store(
    root: Path, engine: Runtime, kind: str, *, student: PruneConfig = STUDENT, **distilling: Any
) -> Store:
    """A store with a student pruned and distilled by the real phases; `distilling`: more settings of distill."""
    store = make_store(root, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))
        told = common(store, "prune-width", PRUNED)
        cut = PruneJob(**told, data=DATA, teacher=TEACHER, sequence_length=32, prune=student)
        prune.run(cut, context(store, PRUNED)[0])
        learn = DistillJob(
            **common(store, "distill-width", DISTILLED),
            data=DATA,
            teacher=TEACHER,
            pruned=f"prune-{PRUNED}",
            sequence_length=32,
            distill=DistillConfig(
                steps=2, global_batch_size=4, micro_batch_size=4, learning_rate=1e-3, warmup_steps=1, **distilling
            ),
            validation=ValidationConfig(samples=4),
        )
        distill.run(learn, context(store, DISTILLED)[0])
    return store


def job(store: Store, fingerprint: str = EXPORTED, **settings: Any) -> ExportJob:
    return ExportJob(
        **common(store, "export-width", fingerprint),
        data=DATA,
        teacher=TEACHER,
        pruned=f"prune-{PRUNED}",
        distilled=f"distill-{DISTILLED}",
        export=ExportConfig.model_validate({"sample_tokens": 12} | settings),
    )


def run(store: Store, fingerprint: str, **settings: Any) -> tuple[ExportResult, Artifact]:
    told, _ = context(store, fingerprint)
    return export.run(job(store, fingerprint, **settings), told), store.open(f"export-{fingerprint}")
