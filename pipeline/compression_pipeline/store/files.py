"""Folders made, files hashed and forced to disk, on volumes that others write too."""

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path

_CHUNK = 8 * 1024**2
_TRIES = 100


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, also while other jobs remove one of those because it is empty.

    Raises OSError.
    """
    for _ in range(_TRIES):
        # Not there when asked for, there when made, not there when looked at: mkdir says either.
        with suppress(FileNotFoundError, FileExistsError):
            return folder.mkdir(parents=True, exist_ok=True)
    return folder.mkdir(parents=True, exist_ok=True)


def link(path: Path, target: Path) -> bool:
    """Give a file a second name, which takes no space. Whether that could be done."""
    try:
        os.link(path, target)
    except OSError:  # a file system without hard links
        return False
    return True


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            found.update(piece)
    return found.hexdigest()


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems don't sync folders; the files themselves must be.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)
