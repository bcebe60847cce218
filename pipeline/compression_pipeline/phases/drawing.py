"""Pages beside what a phase makes: one that can't be drawn costs a warning, never the work of the phase."""

import shutil
from collections.abc import Callable
from pathlib import Path

from compression_pipeline.context import Context


def try_to_draw(what: str, write: Callable[[], object], path: Path, context: Context, *, safe: str) -> bool:
    """Call `write`, which makes the file or folder `path`; whether that could be done.

    If not, nothing is left of it, and a warning says so, with what is `safe` all the same.
    """
    try:
        write()
    except Exception as error:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        warn_of(f"{what} could not be drawn", error, context, safe=safe)
        return False
    return True


def warn_of(what: str, error: Exception, context: Context, *, safe: str) -> None:
    """Tell of something that the phase does without."""
    why = " ".join(f"{type(error).__name__}: {error}".split())
    context.events.warning(f"{what} ({why[:500]}); {safe}")
