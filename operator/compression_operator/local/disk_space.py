"""Room on the disk: about what a step will write, asked before it starts."""

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from compression_operator.api.run import CompressionRun
from compression_operator.core.jobs import Job
from compression_operator.core.room import room_for
from compression_pipeline.config import human_bytes

from .source_files import local_files
from .store_probe import is_published

FLOOR = 64 * 1024**2
"""Bytes that any step may write besides: logs, plots, manifests, tokenizer files."""


def bytes_needed(run: CompressionRun, job: Job, store: Path, *, source_root: Path, aside: Collection[Path] = ()) -> int:
    """Roughly what the job will write, in bytes: what `compression plan` says of its step, without what earlier
    attempts have left. `aside`: what lies below the sources and is not read (resolved).
    """
    if is_published(store, job.phase, job.config.artifact_key):
        return 0  # the job ends soon and writes next to nothing
    # Sources are copied; tokens take about as many bytes as their text.
    files = (path for source in job.config.sources for path in local_files(source, source_root, aside))
    written = sum(path.stat().st_size for path in files) + room_for(run, job)
    return FLOOR + max(0, written - _left_by_attempts(store, job.fingerprint))


def _left_by_attempts(store: Path, fingerprint: str) -> int:
    """Bytes of the step's checkpoints and drafts, from which a later attempt goes on or which it removes."""
    total = 0
    for folder, _, files in os.walk(store / "work" / fingerprint):
        for name in files:
            with contextlib.suppress(OSError):  # gone since
                total += (Path(folder) / name).lstat().st_size
    return total


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
