"""Files that somebody else may write: a path may become a link between a look at it and its opening."""

import os
from io import BufferedReader
from pathlib import Path

_KERNEL = (Path("/proc"), Path("/sys"))
_DESCRIPTORS = Path("/proc/self/fd")


def kernels(real: Path) -> bool:
    """Whether what lies here tells of processes and the machine, such as a job's environment with its secrets."""
    return any(map(real.is_relative_to, _KERNEL))


def open_once(path: Path) -> tuple[BufferedReader, Path]:
    """A file to read, and where it really lies, by what was opened. A pipe does not block. Raises OSError."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    try:
        named = _DESCRIPTORS / str(file.fileno())
        return file, named.readlink() if _DESCRIPTORS.is_dir() else path.resolve()
    except BaseException:
        file.close()
        raise
