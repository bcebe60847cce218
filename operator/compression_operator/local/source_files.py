"""Sources on the machine of a local run: which files they name, and whether they are still what they were."""

from collections.abc import Collection, Iterator
from pathlib import Path

from compression_pipeline.config import digest
from compression_pipeline.config.schemes import scheme_of
from compression_pipeline.store.watched import Selection, marks


def local_path(source: str, root: Path) -> Path | None:
    """The path (perhaps a glob) that a source names, relative ones relative to `root`; None for one elsewhere."""
    return scheme_of(source).local_path(source, root)


def local_files(source: str, root: Path, aside: Collection[Path] = ()) -> Iterator[Path]:
    """The files that a source on this machine names (a file, a folder or a glob), sorted; nothing for other sources.

    Just those that prepare reads: see `Selection`.
    """
    path = local_path(source, root)
    if path is not None:
        selection = Selection.at(path, aside)
        yield from (selection.folder / name for name in selection.names())


def signature(source: str, root: Path, aside: Collection[Path] = ()) -> str | None:
    """A digest that changes when a file of the source does; None for a source elsewhere.

    Cheap enough to be asked at every start, because large files are not read (see `marks`). What prepare makes of the
    files is keyed by their whole content.
    """
    path = local_path(source, root)
    return None if path is None else digest(marks(Selection.at(path, aside)))
