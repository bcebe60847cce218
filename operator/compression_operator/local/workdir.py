"""A work directory: where the files of a local run are, and the lock of whoever works on it."""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from compression_operator.api.run import CompressionRun
from compression_pipeline.config import digest

from .jobfiles import JobFolder, JobRecord, write_atomically

REGISTER = "workdirs"
"""Folder of a shared store: one file for each work directory that uses it, with the directory's path."""


FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class WorkdirError(Exception):
    """The work directory cannot be used; the message is one sentence that says why and what to do."""


def _dumper() -> Any:
    """The C library's dumper where there is one, without anchors: kubectl writes none either."""

    def ignore_aliases(dumper: object, data: object) -> bool:
        return True

    base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return type("Dumper", (base,), {"ignore_aliases": ignore_aliases})


def to_yaml(value: Any) -> str:
    """YAML as kubectl writes it: block style, keys in their order."""
    return yaml.dump(value, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=10_000)


@dataclass(frozen=True)
class Workdir:
    """The layout of a work directory."""

    root: Path

    @property
    def run_file(self) -> Path:
        return self.root / "run.yaml"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def store(self) -> Path:
        """Artifacts: a folder, or a link to a store shared with other runs."""
        return self.root / "store"

    @property
    def students(self) -> Path:
        return self.root / "students"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def invocation(self) -> Path:
        return self.root / "invocation.json"

    @property
    def ours(self) -> tuple[Path, ...]:
        """All that commands write here, resolved: no part of a source that it lies in, as everything else is."""
        written = (self.run_file, self.lock, self.invocation, self.jobs, self.store, self.students, self.report)
        return tuple(path.resolve() for path in written)

    def make(self, shared_store: Path | None = None) -> None:
        """Make what isn't there, and let `store` lead to the shared one; the lock must be held. Raises WorkdirError."""
        if shared_store is not None:
            _make_store(shared_store)
        try:
            self.jobs.mkdir(parents=True, exist_ok=True)
            if shared_store is not None:
                self._link_store(shared_store.absolute())
            elif self.store.is_symlink():
                if not self.store.exists():
                    raise WorkdirError(f"the store {self.store.readlink()} is gone; mount it, or use another --store")
                _make_store(self.store.readlink())
            self.store.mkdir(parents=True, exist_ok=True)
            if self.store.is_symlink():
                self._register()
        except OSError as error:
            raise WorkdirError(unwritable(error, self.root)) from error

    @staticmethod
    def registered(store: Path) -> list[Path]:
        """The work directories whose runs have used this store as a shared one; they need not be there any more. Raises
        WorkdirError.
        """
        folder = store / REGISTER
        if not folder.is_dir():
            return []
        try:
            # A name that begins with a dot is no entry yet: it is being written, or whoever wrote it was killed.
            entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
            return [Path(entry.read_text(encoding="utf-8").strip()) for entry in entries]
        except OSError as error:
            why = f"cannot read {error.filename}: {error.strerror}"
            raise WorkdirError(f"{why}; without it there is no telling which runs need what is in the store") from error

    def _register(self) -> None:
        """Tell the shared store that this directory's run refers to what is in it."""
        root = str(self.root.resolve())
        entry = self.store / REGISTER / digest(root)
        if not entry.exists():
            entry.parent.mkdir(exist_ok=True)
            write_atomically(entry, f"{root}\n")

    def _link_store(self, shared: Path) -> None:
        if self.store.is_symlink():
            if self.store.readlink() == shared:
                return
            self.store.unlink()
        elif self.store.is_dir():
            if self.store.samefile(shared):
                return
            try:
                self.store.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise WorkdirError(
                    f"{self.store} holds this run's artifacts already; leave out --store, or use another --workdir"
                ) from None
        self.store.symlink_to(shared)

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Keep every other command from working on this directory, which is made where it isn't there.

        Raises WorkdirError where one works on it already, or where nothing can be written.

        The lock ends with this process, however it ends.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise WorkdirError(unwritable(error, self.root)) from error
        with os.fdopen(handle, "r+") as file:
            if not _lock(file.fileno()):
                holder = file.read().strip() or "unknown"
                raise WorkdirError(
                    f"{self.root} is in use by process {holder}; wait for it, stop it, or use another --workdir"
                )
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    @property
    def in_use(self) -> bool:
        """Whether a command works on this directory now."""
        try:
            with self.lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def read(self) -> CompressionRun | None:
        """The run of this directory, None where there is none.

        Raises WorkdirError where it cannot be read, or the file is no stored run but a manifest.
        """
        try:
            document = self._document()
            if _is_manifest(document):
                raise WorkdirError(self._manifest_instead)
            return CompressionRun.model_validate(document)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, yaml.YAMLError) as error:
            why = error.strerror if isinstance(error, OSError) else _first_line(error)
            raise WorkdirError(
                f"{self.run_file}: cannot be read ({why}); move it away to start over; published artifacts are kept"
            ) from error

    @property
    def holds_manifest(self) -> bool:
        """Whether `run.yaml` is no stored run but a manifest, which a user wrote."""
        try:
            return _is_manifest(self._document())
        except (OSError, ValueError, yaml.YAMLError):
            return False

    def check_not_overwritten(self, manifest: Path) -> None:
        """Raises WorkdirError where a run would be stored over what a user wrote: this manifest, or another one."""
        with contextlib.suppress(
            OSError
        ):  # the manifest is elsewhere, or the directory can't be used for other reasons
            if self.run_file.samefile(manifest):
                raise WorkdirError(
                    f"{manifest} would be overwritten by the run that {self.root} keeps in run.yaml; "
                    "use another --workdir"
                )
        if self.holds_manifest:
            raise WorkdirError(self._manifest_instead)

    @property
    def _manifest_instead(self) -> str:
        return f"{self.run_file} is a manifest, not the run of a work directory; use another one (--workdir)"

    def _document(self) -> Any:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return yaml.load(self.run_file.read_bytes(), Loader=loader)  # noqa: S506 - a safe one

    def write(self, run: CompressionRun) -> None:
        """Replace the run as a whole. Raises OSError."""
        write_atomically(self.run_file, to_yaml(run.to_json()))

    def forget_jobs(self, which: Callable[[JobRecord], bool]) -> None:
        """Count these jobs as deleted; their logs stay. Raises OSError."""
        for folder in map(JobFolder, self.jobs.iterdir()):
            record = folder.record()
            if record is not None and which(record):
                folder.mark_deleted()


def _is_manifest(document: Any) -> bool:
    """Whether a resource was never stored: what is stored gets a uid."""
    if not isinstance(document, dict):
        return False
    try:
        return not document["metadata"]["uid"]
    except (KeyError, TypeError):
        return True


def _lock(handle: int) -> bool:
    # `in_use` holds the lock for an instant to look at it, so one refusal is no proof.
    for _ in range(5):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


def _make_store(shared: Path) -> None:
    """Make a shared store where it isn't there. Raises WorkdirError where it can't be made, or written."""
    try:
        shared.mkdir(parents=True, exist_ok=True)
        if not os.access(shared, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise WorkdirError(f"cannot write in the store {shared} ({why}); choose another folder with --store") from error


def unwritable(error: OSError, root: Path) -> str:
    """A sentence for a work directory that cannot be written."""
    why = (error.strerror or str(error)).lower()
    mend = "free some space there" if error.errno in FULL else "choose another folder with --workdir"
    return f"cannot write in {error.filename or root} ({why}); {mend}"


def told_of(error: OSError, root: Path) -> str:
    """A sentence for what ended the work on a run: mostly that its directory is full."""
    return unwritable(error, root) if error.errno in FULL else str(error)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error).partition("\n")[0]
