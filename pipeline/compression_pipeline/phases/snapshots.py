"""Weights of a student after a step of its training: a Hugging Face checkpoint that proves which training it is of.

`training.json` beside the weights holds the step's fingerprint, a digest of the losses and gradient norms up to that
step, and the digests of the weights' files. Who went back to an earlier checkpoint, on a device that does not compute
twice alike, has another training from there on: it takes nothing for its own that the one before has left.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.config import Architecture
from compression_pipeline.engines.history import History
from compression_pipeline.huggingface.writer import write_checkpoint
from compression_pipeline.store.files import sha256, sync

RECORD = "training.json"
_NAME = re.compile(r"step-(\d{8,})")


def name_of(step: int) -> str:
    """Name of the folder of the weights after a step."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step whose weights the folder's name says that it has; None of another name, e.g. of one half-written."""
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def lineage(fingerprint: str, history: History, step: int) -> dict[str, Any]:
    """What no two trainings have in common up to a step: neither two of one fingerprint that computed otherwise."""
    course = [(entry.step, entry.loss, entry.gradient_norm) for entry in history.train if entry.step <= step]
    digest = hashlib.sha256(json.dumps(course).encode()).hexdigest()
    return {"fingerprint": fingerprint, "step": step, "course": digest}


def write_snapshot(
    tensors: Iterable[tuple[str, Tensor]],
    student: Architecture,
    folder: Path,
    *,
    template: Path,
    dtype: torch.dtype,
    of: dict[str, Any],
    card: str | None = None,
) -> None:
    """Write weights into `folder`, whole or not at all, and force them to disk. `of`: their `lineage`. Raises OSError
    and what safetensors raises; then nothing is left.
    """
    draft = folder.with_name(folder.name + ".tmp")
    for path in (draft, folder):
        shutil.rmtree(path, ignore_errors=True)
    try:
        write_checkpoint(tensors, student, draft, template=template, dtype=dtype)
        if card is not None:
            (draft / "README.md").write_text(card, encoding="utf-8")
        files = {path.name: sha256(path) for path in sorted(draft.glob("*.safetensors"))}
        (draft / RECORD).write_text(json.dumps({**of, "files": files}))
        for path in (*draft.rglob("*"), draft):
            sync(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    draft.rename(folder)
    sync(folder.parent)


def is_of(folder: Path, of: dict[str, Any]) -> bool:
    """Whether the folder says that its weights are of this `lineage`."""
    found = _record(folder)
    return {name: found.get(name) for name in of} == of


def is_whole(folder: Path) -> bool:
    """Whether the weights are what was written, to the last bit: they are read once."""
    files = _record(folder).get("files")
    if not isinstance(files, dict) or not files:
        return False
    if sorted(path.name for path in folder.glob("*.safetensors")) != sorted(files):
        return False
    with suppress(OSError):
        return all(sha256(folder / name) == told for name, told in files.items())
    return False


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
