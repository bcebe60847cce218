"""Whether an artifact holds what its manifest says: read as a whole once, and again when a file looks otherwise."""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .watched import mark

FOLDER = "verified"
_CHUNK = 8 * 1024**2


def marker(store: Path, name: str) -> Path:
    """The file that says when an artifact was read as a whole; nobody needs it once the artifact is gone."""
    return store / FOLDER / f"{name}.json"


def fault(
    store: Path,
    name: str,
    digests: Mapping[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    anew: bool = False,
) -> str | None:
    """The first file of the artifact whose content isn't what was published; None where all are.

    `digests`: file -> SHA-256, of the manifest. `progress`: told how many bytes of how many were read. `anew`: read all
    again, whatever the volume says of an earlier look. Raises OSError.
    """
    folder = store / "artifacts" / name
    seen = {file: mark(folder / file) for file in digests}
    record = marker(store, name)
    if not anew and _read(record) == {"digests": dict(digests), "marks": seen}:
        return None
    sizes = {file: (folder / file).stat().st_size for file in digests}
    done = 0
    for file, digest in digests.items():
        found = hashlib.sha256()
        with (folder / file).open("rb") as content:
            while piece := content.read(_CHUNK):
                found.update(piece)
                done += len(piece)
                progress(done, sum(sizes.values()))
        if found.hexdigest() != digest:
            return file
    with suppress(OSError):  # a full volume: it is read again next time
        record.parent.mkdir(exist_ok=True)
        temporary = record.with_name(f".{name}.{uuid.uuid4().hex}")
        temporary.write_text(json.dumps({"digests": dict(digests), "marks": seen}))
        temporary.replace(record)
    return None


def _read(record: Path) -> Any:
    try:
        return json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None
