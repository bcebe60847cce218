"""Errors that know their exit class, and the sentences for files that can't be written."""

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .config import ExitClass


class PhaseError(Exception):
    """Base: a phase ends, and why is one sentence for a person."""

    exit_class: ExitClass = ExitClass.TRANSIENT


class UserError(PhaseError):
    """Only a person can help: bad input, impossible sizes, CUDA out of memory, NaN loss, a full disk."""

    exit_class = ExitClass.USER_ERROR


class Diverged(UserError):
    """A training whose loss, gradient norm or validation loss is not finite."""


class TransientError(PhaseError):
    """A passing fault: another attempt may succeed."""

    exit_class = ExitClass.TRANSIENT


class MissingArtifact(TransientError):
    """An input is not in the store, or not whole: the step that makes it must run again."""

    def __init__(self, artifact: str, message: str) -> None:
        super().__init__(artifact, message)  # both, because copies that go to other processes are made of them
        self.artifact = artifact
        self._message = message

    def __str__(self) -> str:
        return self._message


class Interrupted(PhaseError):
    """Told to stop (SIGTERM); whatever was trained is in a checkpoint."""

    exit_class = ExitClass.INTERRUPTED


def one_of(names: Sequence[str]) -> str:
    """What to choose from, in words; of a long list the first 50 names."""
    return names[0] if len(names) == 1 else f"one of {', '.join(names[:50])}"


_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# What libraries that write files in C++ or Rust (torch, safetensors, Arrow) say instead of raising OSError.
_DISK_FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|os error 28|errno 28\b", re.IGNORECASE)
# What torch's zip writer says over the OSError that stopped it: it closes the archive that was not written whole.
_TORN_TEXT = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed")
_NEARLY_FULL_BYTES = 16 * 1024**2
"""Less free space than this, and a write that failed without a reason failed for want of space."""
_HINT = re.compile(
    r"\s*(CUDA kernel errors might be|For debugging consider passing|Compile with `TORCH_USE|Search for `cuda"
    r"|Device-side assertion)"
)
_PORT_TAKEN_TEXT = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)


def torn_write(error: BaseException, folder: Path) -> PhaseError | None:
    """What stopped torch from writing its files into `folder`, in one sentence; None where it wasn't the writing.

    torch's writer may say no more than that its archive is incomplete; then the free space of the file system decides.
    """
    reasons = [one for one in causes(error) if isinstance(one, OSError) and one.errno]
    if disk_full(error):
        return no_space(folder)
    if any(one.errno == errno.EFBIG for one in reasons):
        return not_whole(folder, os.strerror(errno.EFBIG))
    if not any(_TORN_TEXT.search(str(one)) for one in causes(error)):
        return None
    volume = os.statvfs(folder)
    if volume.f_bavail * volume.f_frsize < _NEARLY_FULL_BYTES:
        return no_space(folder)
    return not_whole(folder, str(reasons[0].strerror) if reasons else last_line(error))


def disk_full(error: BaseException) -> bool:
    """Whether the fault, or what it came from, is a file system without space."""
    return any(
        (isinstance(one, OSError) and one.errno in _DISK_FULL) or _DISK_FULL_TEXT.search(str(one))
        for one in causes(error)
    )


def port_taken(error: BaseException) -> bool:
    """Whether the fault, or what it came from, is a TCP port that someone else listens on."""
    return any(
        (isinstance(one, OSError) and one.errno == errno.EADDRINUSE) or _PORT_TAKEN_TEXT.search(str(one))
        for one in causes(error)
    )


def no_space(path: str | Path | None) -> UserError:
    """A file system without space: it does not pass by itself, so to try again would only say it again."""
    where = f" while writing {path}" if path else ""
    return UserError(f"the disk is full{where}; free some space or enlarge the volume of the store, then try again")


def not_whole(path: str | Path, why: str) -> TransientError:
    """A file that could not be written to its end."""
    return TransientError(
        f"{path} could not be written whole ({why}); check the limits and the free space of the store's volume"
    )


def causes(error: BaseException) -> list[BaseException]:
    """The fault, and what it came from, the newest first."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


def last_line(error: BaseException) -> str:
    """The last line of what the fault says, without torch's hints and stack frames below it."""
    said = str(error).partition("Exception raised from")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip() and not _HINT.match(line)]
    return lines[-1][:1000] if lines else "no message"
