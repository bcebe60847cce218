"""How far a measurement has come, for the attempt that goes on with it."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from compression_pipeline.context import Context


class Notes:
    """One rank's notes of a measurement, in the folder of its attempt; a kill at any time leaves the last one whole.

    The folders of attempts go once their step is published.
    """

    def __init__(self, context: Context, fingerprint: str, name: str, measured: Any) -> None:
        """`measured`: what notes are of beside the fingerprint, for JSON; those of something else are not read."""
        self._folders = context.store.earlier_attempts(fingerprint)
        self._path = context.folder / f"{name}.json"
        self._measured = measured

    def __iter__(self) -> Iterator[Any]:
        """What attempts have noted, the newest attempt's first."""
        for folder in self._folders:
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = json.loads((folder / self._path.name).read_text())
                if content["measured"] == self._measured:
                    yield content["note"]

    def write(self, note: Any) -> None:
        """Note it, in place of what this attempt has noted before. A full disk costs the note alone."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(f"{self._path}.part")
            draft.write_text(json.dumps({"measured": self._measured, "note": note}))
            draft.replace(self._path)
