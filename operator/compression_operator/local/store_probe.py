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
    name = recorded_artifact(store, fingerprint)
    return name is not None and is_whole(store, name)


def recorded_artifact(store: Path, fingerprint: str) -> str | None:
    """The artifact that a step noted when it was done; None where there is no note that can be read."""
    note = store / "work" / fingerprint / "published.json"
    try:
        name: Any = json.loads(note.read_text(encoding="utf-8"))["artifact"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None
