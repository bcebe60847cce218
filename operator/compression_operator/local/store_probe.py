"""What a store holds, as far as it can be told from outside the pipeline: by manifests and sizes of files."""

import json
from pathlib import Path
from typing import Any

from compression_pipeline.config import Phase


def is_whole(store: Path, artifact: str) -> bool:
    """Whether the artifact is published and every file that its manifest names has its size. Costs one stat a file."""
    folder = store / "artifacts" / artifact
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes = {name: record["size"] for name, record in manifest["files"].items()}
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # gone, or no manifest that can be read: not whole either way


def is_published(store: Path, phase: Phase, fingerprint: str) -> bool:
    """Whether what a step makes is published: named by its fingerprint, or as the step noted once it knew (prepare)."""
    if is_whole(store, f"{phase}-{fingerprint}"):
        return True
    try:
        note: dict[str, Any] = json.loads((store / "work" / fingerprint / "published.json").read_text(encoding="utf-8"))
        return is_whole(store, str(note["artifact"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False
