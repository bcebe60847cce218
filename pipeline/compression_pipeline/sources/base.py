"""What every kind of source offers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from compression_pipeline.config import TextConfig
from compression_pipeline.config.schemes import Role, SourceScheme, manifest_roots, scheme_of
from compression_pipeline.context import Context
from compression_pipeline.errors import PhaseError, TransientError, UserError
from compression_pipeline.store.published import Asked
from compression_pipeline.store.watched import Watched


class Unanswered(PhaseError):
    """A source was not asked, or did not answer: what was known of it before may stand."""


class Unreachable(Unanswered, TransientError):
    """It did not answer."""


class Offline(Unanswered, UserError):
    """It may not be asked."""


@dataclass(frozen=True)
class Place:
    """A source as the manifest names it, and what is needed to get there."""

    source: str
    field: str  # of the manifest, for messages: teacher.model or dataset.source
    revision: str | None
    roots: Mapping[str, str]  # PrepareJob.source_roots
    store: Path
    context: Context
    aside: Sequence[str] = ()  # PrepareJob.aside

    @property
    def on_cluster(self) -> bool:
        """Whether the job runs in a pod: there no source is relative to a manifest."""
        return manifest_roots(Path()).keys().isdisjoint(self.roots)

    @property
    def scheme(self) -> SourceScheme:
        """What the source's kind says of itself."""
        return scheme_of(self.source)

    @property
    def without_prefix(self) -> str:
        """The source without its prefix."""
        return self.scheme.without_prefix(self.source)

    def download(self, role: Role) -> Path:
        """The folder of the store that keeps what is downloaded of the source."""
        return self.cache / (self.scheme.download(role, self.source) or "")

    @property
    def cache(self) -> Path:
        """Where downloads of sources of this kind are kept."""
        return self.store / (self.scheme.cache or "")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    name: str  # relative to the source, posix
    size: int  # bytes
    digest: str  # of the content: SHA-256, or the Hub's (git SHA-1 of small files)


@dataclass(frozen=True)
class Splits:
    """The files of the splits that are asked for."""

    train: tuple[SourceFile, ...]
    validation: tuple[SourceFile, ...]  # empty: held out of the training documents


class Source(Protocol):
    """A teacher's checkpoint or a dataset's files."""

    @property
    def private(self) -> bool:
        """Whether fetched files are the store's own copies, which never change."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit, where the source has such; known once its files were listed."""
        ...

    def model_files(self) -> tuple[SourceFile, ...]:
        """The files of the checkpoint: config, tokenizer, safetensors. Raises PhaseError."""
        ...

    def text_files(self, dataset: TextConfig) -> Splits:
        """The files of the dataset's splits. Raises PhaseError, e.g. for a split that isn't there."""
        ...

    def missing_bytes(self, files: Sequence[SourceFile]) -> int:
        """What fetching these files will write into the store."""
        ...

    def fetch(self, files: Sequence[SourceFile]) -> list[Path]:
        """Where the files lie on this machine, downloaded if they must be. Raises PhaseError."""
        ...

    def open(self, path: Path) -> BufferedReader:
        """A fetched file, to read. Raises PhaseError where it is by now another than may be read."""
        ...

    def name_of(self, file: SourceFile) -> str:
        """What messages call a file."""
        ...

    def watched(self) -> Watched | None:
        """Local files of which a change means that the source has changed, as they were when listed."""
        ...

    def asked(self) -> Asked | None:
        """What a server answered, where one was asked; known once its files were listed."""
        ...
