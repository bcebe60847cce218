"""`file:` sources of local runs: which files they name, and whether they are still what they were."""

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path

from compression_pipeline.config import digest

SMALL = 1024**2
"""Files up to this many bytes are known by their content; larger ones by their size and time of change."""

PREFIX = "file:"


def local_path(source: str, root: Path) -> Path:
    """The path (perhaps a glob) that a `file:` source names; relative ones are relative to `root`."""
    return root / source.removeprefix(PREFIX)


def local_files(source: str, root: Path, aside: Collection[Path] = ()) -> Iterator[Path]:
    """The files that a `file:` source names (a file, a folder or a glob), sorted; nothing for other sources.

    Of a folder or a glob, as prepare reads it, without hidden files and what is `aside` (resolved): what runs write may
    well lie below the manifest's folder. A folder within one of those that are aside is meant where it is named itself.
    """
    if not source.startswith(PREFIX):
        return
    path = local_path(source, root)
    if path.is_dir():
        yield from _those_meant(path, "**/*", aside)
    elif path.exists():
        yield path
    else:
        base = _before_glob(path)
        yield from _those_meant(base, str(path.relative_to(base)), aside)


def _those_meant(base: Path, pattern: str, aside: Collection[Path]) -> list[Path]:
    below = base.resolve().parents
    others = [folder for folder in aside if folder not in below]

    def meant(path: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(base).parts)
        return not hidden and path.is_file() and not any(map(path.resolve().is_relative_to, others))

    return sorted(filter(meant, base.glob(pattern)))


def signature(source: str, root: Path, aside: Collection[Path] = ()) -> str | None:
    """A digest that changes when a file of the source does; None for a source that isn't `file:`.

    Made from relative names and sizes, and the content of small files or the time of change of large ones: cheap enough
    to be asked at every start. What prepare makes of the files is keyed by their whole content.
    """
    if not source.startswith(PREFIX):
        return None
    path = local_path(source, root)
    base = path if path.is_dir() else _before_glob(path)
    return digest([[str(file.relative_to(base)), *_mark(file)] for file in local_files(source, root, aside)])


def _mark(file: Path) -> tuple[int, str]:
    status = file.stat()
    if status.st_size <= SMALL:
        return status.st_size, hashlib.sha256(file.read_bytes()).hexdigest()
    return status.st_size, str(status.st_mtime_ns)


def _before_glob(path: Path) -> Path:
    """The longest parent of `path` that holds no wildcard."""
    base = Path(path.anchor)
    for part in path.parent.relative_to(path.anchor).parts if path.anchor else path.parent.parts:
        if any(sign in part for sign in "*?["):
            break
        base /= part
    return base
