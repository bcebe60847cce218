"""`file:` sources of local runs: which files they name, and whether they are still what they were."""

from collections.abc import Collection, Iterator
from pathlib import Path

from compression_pipeline.config import digest
from compression_pipeline.store.watched import Selection, marks

PREFIX = "file:"


def local_path(source: str, root: Path) -> Path:
    """The path (perhaps a glob) that a `file:` source names; relative ones are relative to `root`."""
    return root / source.removeprefix(PREFIX)


def local_files(source: str, root: Path, aside: Collection[Path] = ()) -> Iterator[Path]:
    """The files that a `file:` source names (a file, a folder or a glob), sorted; nothing for other sources.

    Just those that prepare reads: see `Selection`.
    """
    if source.startswith(PREFIX):
        selection = Selection.at(local_path(source, root), aside)
        yield from (selection.folder / name for name in selection.names())


def signature(source: str, root: Path, aside: Collection[Path] = ()) -> str | None:
    """A digest that changes when a file of the source does; None for a source that isn't `file:`.

    Cheap enough to be asked at every start, for large files are not read (see `marks`). What prepare makes of the files
    is keyed by their whole content.
    """
    if not source.startswith(PREFIX):
        return None
    return digest(marks(Selection.at(local_path(source, root), aside)))
