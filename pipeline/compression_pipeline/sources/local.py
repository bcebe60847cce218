"""Sources on this machine: below the folder of a local run's manifest (`file`), or on a mounted volume (`pvc`)."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import BufferedReader
from pathlib import Path, PurePosixPath

from compression_pipeline.config import TextConfig
from compression_pipeline.errors import UserError
from compression_pipeline.huggingface.files import CONFIG, names_of
from compression_pipeline.huggingface.terms import CARD
from compression_pipeline.store.watched import Selection, Watched
from compression_pipeline.text.files import FORMATS, is_text

from . import checkpoint, corpus, readme, splits
from .base import Place, SourceFile, Splits
from .links import Bounds

PROGRESS_SECONDS = 2.0

MODEL_FILES = ("*", "*/*")
"""Where a checkpoint's files may lie: further chat templates are in a folder of their own."""


class LocalSource:
    """A file, a folder or a glob."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._where = f"{place.field}: {place.source}"
        self._path = _path(place)
        volume = _volume(place)
        self._volume = volume.resolve() if volume else None
        selection = Selection.at(self._path, (place.store, *map(Path, place.aside)))
        self._selection = replace(selection, volume=self._volume)
        self._folder = self._selection.folder
        self._watched: Watched | None = None
        self._bounds = Bounds(self._where, self._folder, volume=volume, named=not self._selection.patterns)

    @property
    def private(self) -> bool:
        return False

    @property
    def revision(self) -> None:
        """A file system has none."""
        return

    def model_files(self) -> tuple[SourceFile, ...]:
        if not self._path.is_dir():
            missing = "is no folder" if self._path.exists() or self._selection.patterns else "does not exist"
            meant = f", perhaps {self._path.parent}" if self._path.is_file() else ""
            raise UserError(
                f"{self._where} {missing} ({self._path}); name the folder of a Hugging Face checkpoint{meant}"
            )
        self._folder = self._path
        selection = Selection.below(self._path, *MODEL_FILES, aside=self._selection.aside)
        self._watched = Watched.now(replace(selection, volume=self._volume))
        names = names_of(self._path)
        try:
            return self._described(checkpoint.select(names, self._read, self._where))
        except UserError:
            if CONFIG not in names and (self._path.parent / CONFIG).is_file():
                raise UserError(f"{self._where} is a folder of a checkpoint; name {self._path.parent}") from None
            raise

    def text_files(self, dataset: TextConfig) -> Splits:
        found = self._by_readme(dataset)
        if found is None:
            found = self._by_names(dataset)
        train, validation = splits.wanted(found, dataset, self._where)
        self._watched = Watched.now(self._selection)
        return Splits(self._described(train), self._described(validation))

    def _by_readme(self, dataset: TextConfig) -> dict[str, list[str]] | None:
        """As the README of a folder tells; None where it doesn't."""
        found = None
        if self._path.is_dir() and (self._path / CARD).is_file():
            configs = readme.header(self._read(CARD).decode("utf-8", "replace"), self._where)
            found = readme.files_of(configs, self._selection.names(), dataset, self._where)
        if found is None and dataset.config is not None:
            raise UserError(
                f"{self._where} has no configuration {dataset.config}: no {CARD} in that folder has configs in its "
                "header; remove dataset.config, or name the folder of the files that it means"
            )
        if found is not None:
            readme.check_kinds(found, dataset, self._where)
        return found

    def _by_names(self, dataset: TextConfig) -> dict[str, list[str]]:
        names = self._text_names()
        if not self._selection.patterns:  # a single file is what was asked for, whatever its name
            return {dataset.train_split: names}
        found = splits.by_name(names, [split for split in (dataset.train_split, dataset.validation_split) if split])
        self._warn(splits.warnings(names, found, dataset))
        return found

    def task_files(self) -> tuple[SourceFile, ...]:
        """Every file of a folder of tasks. Raises UserError."""
        if not self._path.is_dir():
            missing = "is no folder" if self._path.exists() or self._selection.patterns else "does not exist"
            raise UserError(f"{self._where} {missing} ({self._path}); name a folder with lm-eval's YAML files")
        self._watched = Watched.now(self._selection)
        return self._described(self._selection.names())

    def path_of(self, name: str) -> Path:
        """Where a file of the source lies."""
        return self._folder / name

    def missing_bytes(self, files: Sequence[SourceFile]) -> int:
        return 0

    def fetch(self, files: Sequence[SourceFile]) -> list[Path]:
        paths = [self._folder / file.name for file in files]
        for path in paths:  # once more, for they are opened now
            self._bounds.check(path)
        return paths

    def open(self, path: Path) -> BufferedReader:
        return self._bounds.open(path)

    def name_of(self, file: SourceFile) -> str:
        return str(self._folder / file.name)

    def watched(self) -> Watched | None:
        return self._watched

    def asked(self) -> None:
        return

    def _text_names(self) -> list[str]:
        """The files that can be read, relative to the folder."""
        base, patterns = self._selection.base, self._selection.patterns
        if not patterns and base.is_file():
            if not is_text(base.name):
                raise UserError(f"{self._where} is of an unsupported type; give one of {', '.join(FORMATS)}")
            return [base.name]
        if not base.is_dir():
            raise UserError(f"{self._where} does not exist ({base}); correct the path")
        if any("**" in pattern for pattern in patterns):
            self._warn_of_links(base)
        names = self._selection.names()
        for pattern in patterns:
            for path in base.glob(pattern):
                if is_text(path.name) and not (path.is_file() or path.is_dir() or self._selection.leaves_out(path)):
                    self._bounds.check(path)  # says what else it is
        if not names:
            why = "is an empty folder" if self._path.is_dir() else "matches no file"
            why = "is where runs keep what they make" if base.resolve() in self._selection.aside else why
            raise UserError(f"{self._where} {why} ({base}); correct the path")
        readable = [name for name in names if is_text(name)]
        if not readable:
            raise UserError(
                f"{self._where} has no file of a supported type ({names[0]} is none); give one of {', '.join(FORMATS)}"
            )
        left = corpus.beside(readable)
        kept = [name for name in readable if name not in left]
        self._warn(corpus.warnings(left, {name: (base / name).stat().st_size for name in kept}))
        return kept

    def _read(self, name: str) -> bytes:
        with self.open(self._path / name) as file:
            return file.read()

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self._place.context.events.warning(f"{self._where}: {warning}")

    def _warn_of_links(self, base: Path) -> None:
        """`**` leads through folders alone."""
        for path in sorted(base.rglob("*")):
            if path.is_symlink() and path.is_dir() and not self._selection.leaves_out(path):
                self._place.context.events.warning(
                    f"{self._where}: what is below {path} is not read, because it is a link; name that folder itself"
                )
                return

    def _described(self, names: Sequence[str]) -> tuple[SourceFile, ...]:
        context = self._place.context
        for name in names:
            self._bounds.check(self._folder / name)
        sizes = [(self._folder / name).stat().st_size for name in names]
        found: list[SourceFile] = []
        said = time.monotonic()
        for name, size in zip(names, sizes, strict=True):
            context.stop_if_requested()
            with self.open(self._folder / name) as file:
                found.append(SourceFile(name, size, hashlib.file_digest(file, "sha256").hexdigest()))
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                done = sum(file.size for file in found)
                context.events.progress(done, sum(sizes), unit="bytes", doing=f"read {self._place.source}")
        return tuple(found)


def _volume(place: Place) -> Path | None:
    """The mounted claim that the source is on."""
    root = place.scheme.root(place.source)
    on_claim = root in place.roots and place.scheme.volume_claim(place.source) is not None
    return Path(place.roots[root]) if root is not None and on_claim else None


def _path(place: Place) -> Path:
    scheme = place.scheme
    root, below = scheme.root(place.source), PurePosixPath(scheme.path(place.source))
    if root not in place.roots and not below.is_absolute():
        raise UserError(
            f"{place.field}: {place.source}: this job was not told where {root} is; name a source it can reach"
        )
    if scheme.volume_claim(place.source) is not None and ".." in below.parts:
        raise UserError(f"{place.field}: {place.source} leaves the volume; remove .. from the path")
    return Path(place.roots.get(root or "", "/"), below)
