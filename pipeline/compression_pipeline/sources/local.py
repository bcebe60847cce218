"""Sources on this machine: `file:path`, relative to the manifest's folder, and `pvc://claim/path`, a mounted volume."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from compression_pipeline.artifact import Watched, sha256
from compression_pipeline.config import DatasetConfig
from compression_pipeline.errors import UserError
from compression_pipeline.text.files import FORMATS, is_text

from . import checkpoint, corpus, splits
from .base import Place, SourceFile, Splits

PROGRESS_SECONDS = 2.0


class LocalSource:
    """A file, a folder or a glob."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._where = f"{place.field}: {place.source}"
        self._base, self._pattern = _before_glob(_path(place))
        below = self._base.resolve().parents  # a folder within the store is meant where it is named itself
        aside = {path.resolve() for path in (place.store, *map(Path, place.aside))}
        self._aside = aside.difference(below)
        self._watched: dict[Path, Watched] = {}

    @property
    def private(self) -> bool:
        return False

    @property
    def revision(self) -> None:
        """A file system has none."""
        return

    def model_files(self) -> tuple[SourceFile, ...]:
        if self._pattern or not self._base.is_dir():
            missing = "is no folder" if self._pattern or self._base.exists() else "does not exist"
            raise UserError(f"{self._where} {missing} ({self._base}); name the folder of a Hugging Face checkpoint")
        names = [path.name for path in self._base.iterdir() if path.is_file()]
        return self._described(checkpoint.select(names, self._where), self._base)

    def text_files(self, dataset: DatasetConfig) -> Splits:
        base, names = self._text_names()
        # A single file is what was asked for, whatever its name.
        named = (dataset.train_split, *([dataset.validation_split] if dataset.validation_split else []))
        found = {dataset.train_split: names} if self._base.is_file() else splits.by_name(names, named)
        self._warn(splits.doubts(names, found, dataset) if not self._base.is_file() else ())
        train, validation = splits.wanted(found, dataset, self._where)
        self._base = base
        return Splits(self._described(train, base), self._described(validation, base))

    def missing_bytes(self, files: Sequence[SourceFile]) -> int:
        return 0

    def fetch(self, files: Sequence[SourceFile]) -> list[Path]:
        return [self._base / file.name for file in files]

    def name_of(self, file: SourceFile) -> str:
        return str(self._base / file.name)

    def watched(self) -> list[Watched]:
        return list(self._watched.values())

    def _text_names(self) -> tuple[Path, list[str]]:
        """The folder, and the files in it that can be read, relative to it."""
        base = self._base
        if not self._pattern and base.is_file():
            if not is_text(base.name):
                raise UserError(f"{self._where} is of an unsupported type; give one of {', '.join(FORMATS)}")
            return base.parent, [base.name]
        if not base.is_dir():
            raise UserError(f"{self._where} does not exist ({base}); correct the path")
        pattern = self._pattern or "**/*"
        if "**" in pattern:
            self._warn_of_links(base)
        files = sorted(p for p in base.glob(pattern) if p.is_file() and not self._is_aside(p.relative_to(base)))
        if not files:
            why = "matches no file" if self._pattern else "is an empty folder"
            why = "is where runs keep what they make" if base.resolve() in self._aside else why
            raise UserError(f"{self._where} {why} ({base}); correct the path")
        readable = [path.relative_to(base).as_posix() for path in files if is_text(path.name)]
        if not readable:
            raise UserError(
                f"{self._where} has no file of a supported type ({files[0].name} is none); give one of "
                f"{', '.join(FORMATS)}"
            )
        self._watch(base, *{(base / name).parent for name in readable})  # a new file changes its folder
        left = corpus.beside(readable)
        kept = [name for name in readable if name not in left]
        self._warn(corpus.doubts(left, {name: (base / name).stat().st_size for name in kept}))
        return base, kept

    def _warn(self, doubts: Iterable[str]) -> None:
        for doubt in doubts:
            self._place.context.events.warning(f"{self._where}: {doubt}")

    def _warn_of_links(self, base: Path) -> None:
        """`**` leads through folders alone."""
        for path in sorted(base.rglob("*")):
            if path.is_symlink() and path.is_dir() and not self._is_aside(path.relative_to(base)):
                self._place.context.events.warning(
                    f"{self._where}: what is below {path} is not read, for it is a link; name that folder itself"
                )
                return

    def _is_aside(self, path: Path) -> bool:
        """Hidden, or something of ours: what runs write may well lie below the manifest's folder."""
        hidden = any(part.startswith(".") for part in path.parts)
        return hidden or any(map((self._base / path).resolve().is_relative_to, self._aside))

    def _described(self, names: Sequence[str], base: Path) -> tuple[SourceFile, ...]:
        context = self._place.context
        sizes = [(base / name).stat().st_size for name in names]
        found: list[SourceFile] = []
        said = time.monotonic()
        for name, size in zip(names, sizes, strict=True):
            context.stop_if_requested()
            path = base / name
            self._watch(path)
            found.append(SourceFile(name, size, sha256(path)))
            if time.monotonic() - said > PROGRESS_SECONDS:
                said = time.monotonic()
                done = sum(file.size for file in found)
                context.events.progress(done, sum(sizes), unit="bytes", doing=f"read {self._place.source}")
        return tuple(found)

    def _watch(self, *paths: Path) -> None:
        self._watched |= {path: Watched.now(path) for path in paths}


def _path(place: Place) -> Path:
    if place.source.startswith("file:"):
        root, rest = "file", place.source.removeprefix("file:")
    else:
        claim, _, rest = place.source.removeprefix("pvc://").partition("/")
        root = f"pvc://{claim}"
    if root not in place.roots and not (root == "file" and Path(rest).is_absolute()):
        raise UserError(
            f"{place.field}: {place.source}: this job was not told where {root} is; name a source it can reach"
        )
    if root == "file":
        return Path(place.roots.get(root, "/"), rest)
    if ".." in PurePosixPath(rest).parts:
        raise UserError(f"{place.field}: {place.source} leaves the volume; remove .. from the path")
    return Path(place.roots[root], rest.lstrip("/"))


def _before_glob(path: Path) -> tuple[Path, str]:
    """The longest parent without wildcards, and the pattern below it (empty: none)."""
    if path.exists():  # a name may hold such signs
        return path, ""
    for number, part in enumerate(path.parts):
        if any(sign in part for sign in "*?["):
            return Path(*path.parts[:number]), "/".join(path.parts[number:])
    return path, ""
