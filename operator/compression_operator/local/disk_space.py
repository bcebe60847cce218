"""Room on the disk: about what a step will write, asked before it starts."""

import shutil
from collections.abc import Collection
from pathlib import Path

from compression_pipeline.config import JobConfig, human_bytes

from .source_files import local_files

FLOOR = 64 * 1024**2
"""Bytes that any step may write besides: logs, plots, manifests, tokenizer files."""


def bytes_needed(
    config: JobConfig, *, source_root: Path, teacher: int, student: int, aside: Collection[Path] = ()
) -> int:
    """Roughly what the step writes, in bytes. `teacher`, `student`: parameters, 0 where they aren't known yet; `aside`:
    what lies below the sources and is not read (resolved).
    """
    # Sources are copied; tokens take about as many bytes as their text.
    copied = sum(path.stat().st_size for source in config.sources for path in local_files(source, source_root, aside))
    return FLOOR + copied + config.bytes_written(teacher, student)


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
