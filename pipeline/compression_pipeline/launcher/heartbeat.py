"""One job at a time per fingerprint: a file that is touched while a job works.

No flock, which is unreliable on network volumes. Ages are differences of two times that the volume itself gave, so
clocks needn't agree. Should two jobs ever think that they hold it (one was paused, say), nothing is torn: each writes
in a folder of its own, publishing is atomic and the first wins.
"""

import errno
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from compression_pipeline.config import Record
from compression_pipeline.machine import machine_id
from compression_pipeline.store.files import make_folder
from compression_pipeline.store.system import process_start

FILE = "heartbeat"
BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Six missed beats. A network volume may answer late, and a paused process must not lose its step for a hiccup."""
_TRIES = 1000
"""To find the folder still there that was just made: others that leave remove it, six times in a row."""

_NOT_LINKED = frozenset({errno.EEXIST, errno.EPERM, errno.ENOTSUP, errno.ENOSYS})
"""The name is taken, or the volume has no hard links (SMB, object storage)."""


class Holder(Record):
    """Content of the heartbeat file: who holds it."""

    token: str  # names the launch
    job: str  # run/step/attempt/uid: the launchers of one job's nodes know each other by it
    machine: str
    pid: int
    start: str | None
    since: datetime

    @property
    def alive(self) -> bool | None:
        """Whether its process runs; None where this machine can't know."""
        if self.machine != machine_id() or self.start is None:
            return None
        return process_start(self.pid) == self.start

    def __str__(self) -> str:
        return f"{'/'.join(self.job.split('/')[:3])} (host {self.machine.partition(' ')[0]}, process {self.pid})"


def holder(folder: Path) -> Holder | None:
    """Who holds the heartbeat in `folder`, alive or not; None where nobody does."""
    try:
        return Holder.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return None


class Heartbeat:
    """The heartbeat of one fingerprint, from the eyes of one job."""

    def __init__(self, folder: Path, job: str, *, token: str, probe: Path) -> None:
        """`folder`: `<store>/work/<fingerprint>`. `probe`: our own folder on that volume, touched to learn its time."""
        pid = os.getpid()
        self._path = folder / FILE
        self._probe = probe
        self._next = 0.0
        self.me = Holder(
            token=token,
            job=job,
            machine=machine_id(),
            pid=pid,
            start=process_start(pid),
            since=datetime.now(UTC),
        )

    def claim(self) -> Holder | None:
        """Take the heartbeat; where another job keeps it, that one. Raises OSError."""
        for _ in range(_TRIES):
            make_folder(self._path.parent)
            with suppress(FileNotFoundError):  # who ended the step has just removed the folder, for it was empty
                return self._claim()
        return self._claim()

    def release(self) -> None:
        """Remove the heartbeat if it is ours, so that nobody waits, and its folder if nothing else is in it."""
        with suppress(OSError):
            if self.holder_unless_me() is None:
                self._path.unlink(missing_ok=True)
            self._path.parent.rmdir()

    def _claim(self) -> Holder | None:
        content = self.me.model_dump_json(by_alias=True)
        temporary = self._path.with_name(f".heartbeat.{self.me.token}")
        try:
            temporary.write_text(content)
            try:
                os.link(temporary, self._path)  # atomic, and fails where it exists
            except OSError as error:
                if error.errno not in _NOT_LINKED:
                    raise
                if (other := self.other()) is not None:
                    return other
                temporary.replace(self._path)
        finally:
            temporary.unlink(missing_ok=True)
        self._next = time.monotonic() + BEAT_SECONDS
        return self.holder_unless_me()

    def other(self) -> Holder | None:
        """The job that holds the heartbeat and is alive as far as can be told; None where it is free or stale."""
        try:
            with self._path.open() as file:  # opened, for network volumes show fresh times only then
                changed = os.fstat(file.fileno()).st_mtime
                found = Holder.model_validate_json(file.read())
        except (OSError, ValidationError):
            return None
        if found.token == self.me.token or found.alive is False:
            return None
        return found if self._volume_time() - changed < STALE_SECONDS else None

    def holder_unless_me(self) -> Holder | None:
        """Who holds the heartbeat, where it isn't this job."""
        found = holder(self._path.parent)
        return None if found is None or found.token == self.me.token else found

    @property
    def mine(self) -> bool:
        """Whether this job holds it."""
        found = holder(self._path.parent)
        return found is not None and found.token == self.me.token

    @property
    def due(self) -> bool:
        """Whether it is time for the next beat."""
        return time.monotonic() >= self._next

    @property
    def there(self) -> bool:
        """Whether anybody holds it. Who took it from us and has ended has removed it."""
        return self._path.exists()

    def beat(self) -> Holder | None:
        """Touch the heartbeat, or take it again where it is free; returns who took it, if another job did."""
        self._next = time.monotonic() + BEAT_SECONDS
        taker = self.holder_unless_me()
        if taker is None:
            with suppress(OSError):  # a full or hung volume: the next beat may succeed
                if not self.there:
                    return self.claim()
                os.utime(self._path)
        return taker

    def _volume_time(self) -> float:
        try:
            os.utime(self._probe)
            return self._probe.stat().st_mtime
        except OSError:
            return time.time()
