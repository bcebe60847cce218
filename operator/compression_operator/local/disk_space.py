"""Room on the disk: about what a step will write, asked before it starts."""

import shutil
from collections.abc import Collection
from pathlib import Path

from compression_pipeline.config import (
    DistillJob,
    ExportDtype,
    ExportJob,
    FinetuneJob,
    JobConfig,
    PrepareJob,
    PruneJob,
    TrainingConfig,
    human_bytes,
)

from .source_files import local_files

FLOOR = 64 * 1024**2
"""Bytes that any step may write besides: logs, plots, manifests, tokenizer files."""

WEIGHT = 4
"""Bytes of one parameter of a model between phases (float32 on CPU; bfloat16 on GPU takes half)."""

CHECKPOINTED = 14
"""Bytes of one parameter in a training checkpoint: bfloat16 weight, float32 master weight and two AdamW moments."""


def bytes_needed(
    config: JobConfig, *, source_root: Path, teacher: int, student: int, aside: Collection[Path] = ()
) -> int:
    """Roughly what the step writes, in bytes. `teacher`, `student`: parameters, 0 where they aren't known yet; `aside`:
    what lies below the sources and is not read (resolved).
    """
    match config:
        case PrepareJob():
            # The teacher is copied; tokens take about as many bytes as their text.
            files = (path for source in config.sources for path in local_files(source, source_root, aside))
            written = sum(path.stat().st_size for path in files)
        case FinetuneJob():
            written = teacher * (WEIGHT + _checkpoints(config.finetune))
        case PruneJob():
            written = (student or teacher) * WEIGHT
        case DistillJob():
            written = (student or teacher) * (WEIGHT + _checkpoints(config.distill))
        case ExportJob():
            written = (student or teacher) * (4 if config.export.dtype is ExportDtype.FLOAT32 else 2)
        case _:
            written = 0
    return FLOOR + written


def shortage(store: Path, needed: int) -> str | None:
    """A sentence where the disk of `store` has less than `needed` bytes free, None where it has enough."""
    free = shutil.disk_usage(store).free
    if free >= needed:
        return None
    shared = store.is_symlink()  # --store was given: its path is the one that the user knows
    advice = "use another --store" if shared else "keep the store on another disk with --store"
    return (
        f"{store.readlink() if shared else store} has {human_bytes(free)} free and this step needs about "
        f"{human_bytes(needed)}; free some space, or {advice}"
    )


def _checkpoints(training: TrainingConfig) -> int:
    # One more than are kept: the new one is whole before the oldest goes.
    return (training.keep_checkpoints + 1) * CHECKPOINTED
