"""The store: artifacts published as a whole or not at all, and the folders of attempts.

<store>/artifacts/<phase>-<key>/         published by rename; manifest.json says what it is and what is in it
<store>/work/<fingerprint>/<attempt>-<launch>/   private to one launch of an attempt: drafts, checkpoints
<store>/work/<fingerprint>/published.json   where an artifact's key isn't the step's fingerprint (prepare)
"""

import errno
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from .config import Record
from .config.engines import ENGINES
from .config.fingerprint import SCHEMA_VERSION, digest
from .errors import MissingArtifact, UserError
from .store import verified
from .store.files import make_folder, sha256, sync
from .store.published import Published
from .store.trust import Trust

MANIFEST = "manifest.json"
VERSIONED = ("transformers", "tokenizers", "compression-operator")
"""Distributions whose versions a manifest records, where installed, beside torch and what engines stand on."""

Result = TypeVar("Result", bound=Record)

PATIENCE = 8.0
"""Seconds in which an artifact that isn't seen may yet be."""

FIRST_PAUSE = 0.1

_ATTEMPT = re.compile(r"(\d+)(?:-[0-9a-f]+)?")
_LAUNCH_DIGITS = 8


class FileRecord(Record):
    """One file of an artifact."""

    size: int
    sha256: str


class Manifest(Record):
    """`manifest.json`: what the artifact is, from what, and every file in it."""

    schema_version: int = SCHEMA_VERSION
    phase: str
    key: str
    config: dict[str, Any] = Field(description="The configuration of the job that made it, as it was told.")
    inputs: dict[str, str] = Field(description="Role of each input -> its artifact's name, or what a source was.")
    files: dict[str, FileRecord] = Field(description="Path within the artifact -> size and SHA-256.")
    result: dict[str, Any]
    metrics: dict[str, Any]
    versions: dict[str, str]
    created: datetime


@dataclass(frozen=True)
class Artifact:
    """A published artifact."""

    name: str
    path: Path
    manifest: Manifest
    digest: str  # SHA-256 of the manifest's file

    @property
    def model(self) -> Path:
        """The Hugging Face checkpoint in it."""
        return self.path / "model"

    @property
    def data(self) -> Path:
        """The tokenized text in it."""
        return self.path / "data"

    @property
    def content(self) -> str:
        """Digest of all its files. An artifact that is made anew under its name may be another one."""
        return digest({file: record.sha256 for file, record in self.manifest.files.items()})

    def result(self, model: type[Result]) -> Result:
        """What the phase reported that made it. Raises ValidationError where another version did."""
        return model.model_validate(self.manifest.result | {"digest": self.digest})


class Store:
    """One tree that all runs of a storage share."""

    def __init__(
        self,
        root: Path,
        *,
        drafts: Path | None = None,
        trust: Trust | None = None,
        passed_over: Callable[[str], object] = lambda sentence: None,
    ) -> None:
        """`drafts`: folder in the store in which drafts are made; an attempt's own, so that leftovers can be told.

        `trust`: what of the artifacts is taken; everything, unless given. `passed_over`: told once of each that is not.
        """
        self.root = root
        self.trust = trust or Trust()
        self._passed_over = passed_over
        self._told: set[str] = set()
        self.artifacts = root / "artifacts"
        self._drafts = drafts or root / "work" / "drafts"

    def find(self, name: str) -> Artifact | None:
        """The artifact, where it is published and whole: its manifest can be read and every file has its size.

        None, too, where it is not to be trusted.
        """
        found = self._find_whole(name)
        if found is None or self.trust.admits(name, found.digest):
            return found
        if name not in self._told:
            self._told.add(name)
            self._passed_over(f"{found.path} {self.trust.refusal(name)}")
        return None

    def _find_whole(self, name: str) -> Artifact | None:
        path = self.artifacts / name
        read = _manifest(path)
        if read is None or f"{read[0].phase}-{read[0].key}" != name or _missing(path, read[0]):
            return None
        return Artifact(name, path, *read)

    def open(self, name: str) -> Artifact:
        """The artifact. A network volume may show late what another node wrote, or lose hold of it, so a second look is
        taken, and some more.

        Raises MissingArtifact that says what is missing.
        """
        end = time.monotonic() + PATIENCE
        pause = FIRST_PAUSE
        while (found := self.find(name)) is None and time.monotonic() < end:
            time.sleep(pause)
            pause *= 2
            with suppress(OSError):
                list(self.artifacts.iterdir())  # a client of NFS forgets which names were not there
        if found is not None:
            return self.use(found)
        path = self.artifacts / name
        again = f"the step that makes {name} must run again"
        if not path.is_dir():
            raise MissingArtifact(name, f"the store {self.root} has no artifact {name}; {again}")
        manifest = _manifest(path)
        if self._find_whole(name) is not None:
            raise MissingArtifact(name, f"{path} {self.trust.refusal(name)}; {again}")
        missing = MANIFEST if manifest is None else _missing(path, manifest[0]) or MANIFEST
        raise MissingArtifact(name, f"{path / missing} is missing or not whole; {again}")

    def use(self, artifact: Artifact) -> Artifact:
        """The artifact, marked as used now: what was used lately no clean-up removes, whichever runs it knows of."""
        with suppress(OSError):
            os.utime(artifact.path)
        return artifact

    def holds_what_was_published(self, artifact: Artifact) -> bool:
        """Whether its files are those of its manifest, to the byte: they are read as a whole, once."""
        digests = {name: record.sha256 for name, record in artifact.manifest.files.items()}
        try:
            return verified.fault(self.root, artifact.name, digests, anew=self.trust.known_only) is None
        except FileNotFoundError:  # another job has just set it aside
            return False

    def set_aside(self, artifact: Artifact | str) -> None:
        """Put a damaged artifact, or what has this name, out of the way; not what came in its place meanwhile."""
        name = artifact if isinstance(artifact, str) else artifact.name
        there = _manifest(self.artifacts / name)
        if there and isinstance(artifact, Artifact) and there[1] != artifact.digest:
            return
        with suppress(FileNotFoundError):
            (self.artifacts / name).rename(self.artifacts / f".damaged-{name}-{uuid.uuid4().hex[:8]}")
            verified.marker(self.root, name).unlink()

    def find_published(self, phase: str, fingerprint: str, key: str | None = None) -> Artifact | None:
        """What the step of this fingerprint has published, with the result that it told, where its sources are still
        what they were. `key`: of its artifact, where that isn't the fingerprint.
        """
        key = key or fingerprint
        found = self.find(f"{phase}-{key}")
        # Another step may have made it, and measured it in another way.
        if found is not None and found.manifest.config.get("fingerprint", key) == fingerprint:
            return found
        record = self.published(fingerprint)
        return self.recorded(record) if record is not None and record.stands else None

    def published(self, fingerprint: str) -> Published | None:
        """What the step of this fingerprint noted when it was done; None where it noted nothing, or is not believed."""
        if self.trust.known_only:
            return None
        try:
            return Published.model_validate_json((self.work_folder(fingerprint) / "published.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def recorded(self, record: Published) -> Artifact | None:
        """The artifact of such a note, where it is whole, with the result that was noted."""
        found = self.find(record.artifact)
        if found is None:
            return None
        result = found.manifest.result | record.result
        return replace(found, manifest=found.manifest.model_copy(update={"result": result}))

    def record_published(self, fingerprint: str, record: Published) -> None:
        """Remember which artifact the step of this fingerprint made."""
        folder = self.work_folder(fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".published.{uuid.uuid4().hex}"
        try:
            temporary.write_text(record.model_dump_json(by_alias=True))
            temporary.replace(folder / "published.json")
        finally:
            temporary.unlink(missing_ok=True)

    def work_folder(self, fingerprint: str) -> Path:
        """The folder of all that is under way for a step; it need not be there."""
        return self.root / "work" / fingerprint

    def attempt_path(self, fingerprint: str, attempt: int, launch: str | None = None) -> Path:
        """The folder private to an attempt; it need not be there.

        Runs that share a store count their attempts each for itself, and a job may be started twice: `launch`, a hex
        name that nobody else has, keeps them apart.
        """
        return self.work_folder(fingerprint) / (f"{attempt}-{launch[:_LAUNCH_DIGITS]}" if launch else str(attempt))

    def attempt_folder(self, fingerprint: str, attempt: int, launch: str | None = None) -> Path:
        """`attempt_path`, made where it isn't there. Raises UserError for a read-only store."""
        folder = self.attempt_path(fingerprint, attempt, launch)
        self._make(folder)
        return folder

    def earlier_attempts(self, fingerprint: str) -> list[Path]:
        """Folders of all attempts at this fingerprint so far, of all runs, this one's too; highest number first."""
        work = self.work_folder(fingerprint)
        found = [
            (int(match[1]), path)
            for path in (work.iterdir() if work.is_dir() else ())
            if (match := _ATTEMPT.fullmatch(path.name))
        ]
        return [path for _, path in sorted(found, reverse=True)]

    @contextmanager
    def draft(self, phase: str, key: str) -> "Iterator[Draft]":
        """A private folder to fill and publish; what isn't published is removed on the way out.

        Raises UserError for a read-only store.
        """
        path = self._drafts / f"draft-{phase}-{key}-{uuid.uuid4().hex[:8]}"
        self._make(path)
        self._make(self.artifacts)
        try:
            yield Draft(self, phase, key, path)
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def remove_drafts(self, fingerprint: str) -> None:
        """Remove what earlier attempts left unpublished (killed in mid-write). For who holds the heartbeat only."""
        for attempt in self.earlier_attempts(fingerprint):
            for path in attempt.glob("draft-*"):
                shutil.rmtree(path, ignore_errors=True)

    def remove_attempts(self, fingerprint: str) -> None:
        """Remove what all attempts left, once the artifact is published. For who holds the heartbeat only."""
        for attempt in self.earlier_attempts(fingerprint):
            shutil.rmtree(attempt, ignore_errors=True)

    def _make(self, folder: Path) -> None:
        try:
            make_folder(folder)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise UserError(
                    f"the store {self.root} can't be written ({error.strerror}); mount it writable for this user"
                ) from error
            if error.errno in (errno.ENOTDIR, errno.EEXIST):
                raise UserError(f"the store {self.root} is no folder ({error.filename}: {error.strerror})") from error
            raise


class Draft:
    """An artifact in the making; `path` is its folder."""

    def __init__(self, store: Store, phase: str, key: str, path: Path) -> None:
        self.path = path
        self.name = f"{phase}-{key}"
        self._store = store
        self._phase = phase
        self._key = key
        self._hashed: dict[str, FileRecord] = {}

    def hashed(self, file: Path, sha256: str) -> None:
        """Tell the SHA-256 of a file of the draft that was hashed while it was written, so it isn't read again."""
        self._hashed[file.relative_to(self.path).as_posix()] = FileRecord(size=file.stat().st_size, sha256=sha256)

    def publish(
        self,
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        result: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Write the manifest, force all to disk, rename. A sound winner of a lost race is returned instead.

        `config`, `result` and `metrics` are JSON-ready. Raises OSError (a full disk leaves nothing behind).
        """
        files = {
            path.relative_to(self.path).as_posix(): path for path in sorted(self.path.rglob("*")) if path.is_file()
        }
        manifest = Manifest(
            phase=self._phase,
            key=self._key,
            config=dict(config),
            inputs=dict(inputs),
            files={name: self._record(name, path) for name, path in files.items()},
            result=dict(result),
            metrics=dict(metrics or {}),
            versions=versions(),
            created=datetime.now(UTC),
        )
        text = f"{manifest.model_dump_json(by_alias=True, indent=1)}\n".encode()
        (self.path / MANIFEST).write_bytes(text)
        for path in files.values():
            sync(path)
        for folder in [path for path in self.path.rglob("*") if path.is_dir()]:
            sync(folder)
        sync(self.path / MANIFEST)
        sync(self.path)
        return self._rename(manifest, hashlib.sha256(text).hexdigest())

    def _record(self, name: str, path: Path) -> FileRecord:
        known = self._hashed.get(name)
        if known is not None and known.size == path.stat().st_size:
            return known
        return FileRecord(size=path.stat().st_size, sha256=sha256(path))

    def _rename(self, manifest: Manifest, digest: str) -> Artifact:
        target = self._store.artifacts / self.name
        while True:
            try:
                self.path.rename(target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                winner = self._store.find(self.name)
                if winner is not None and self._store.holds_what_was_published(winner):
                    return winner
                # Something of this name that was damaged since it was published, or that is not to be trusted.
                self._store.set_aside(winner or self.name)
                continue
            sync(self._store.artifacts)
            return Artifact(self.name, target, manifest, digest)


def versions() -> dict[str, str]:
    """Versions of Python and of what shapes results, as installed; nothing is imported."""
    found = {"python": python_version()}
    engines = [name for engine in ENGINES.values() for name in engine.distributions]
    for name in ("torch", *engines, *VERSIONED):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _manifest(path: Path) -> tuple[Manifest, str] | None:
    """The manifest in a folder, and the SHA-256 of its file."""
    try:
        text = (path / MANIFEST).read_bytes()
        return Manifest.model_validate_json(text), hashlib.sha256(text).hexdigest()
    except (OSError, ValidationError):
        return None


def _missing(path: Path, manifest: Manifest) -> str | None:
    """The first file of the manifest that isn't there with its size."""
    for name, record in manifest.files.items():
        with suppress(OSError):
            if (path / name).stat().st_size == record.size:
                continue
        return name
    return None
