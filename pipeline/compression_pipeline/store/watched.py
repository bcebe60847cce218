"""Local files that something is made from: which they are, and whether they are still what they were."""

import hashlib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from compression_pipeline.untrusted_files import kernels, open_once

SMALL = 1024**2
"""Files up to this many bytes are known by their content, larger ones by what the file system says of them."""

EVERYTHING = "**/*"


@dataclass(frozen=True)
class Selection:
    """The files of a folder that match any of some patterns; without a pattern, the one file `base`.

    Hidden files are left out, and so is what lies in a folder that is `aside` (resolved), for what runs write may well
    lie below a source. A folder within one of those is meant where it is named itself.
    """

    base: Path
    patterns: tuple[str, ...]
    aside: frozenset[Path] = frozenset()
    volume: Path | None = None  # resolved: the mounted claim that nothing is read outside of

    @classmethod
    def at(cls, path: Path, aside: Iterable[Path] = ()) -> "Selection":
        """What a path names: a file, a folder with all that is in it, or else a glob."""
        if path.is_dir():
            return cls.below(path, EVERYTHING, aside=aside)
        if path.exists():  # a name may hold wildcards
            return cls(path, ())
        base, pattern = _before_glob(path)
        return cls.below(base, pattern, aside=aside) if pattern else cls(path, ())

    @classmethod
    def below(cls, base: Path, *patterns: str, aside: Iterable[Path] = ()) -> "Selection":
        """The files of a folder that match any of these patterns."""
        above = base.resolve().parents
        return cls(base, patterns, frozenset(path.resolve() for path in aside).difference(above))

    @property
    def folder(self) -> Path:
        """What names are relative to."""
        return self.base if self.patterns else self.base.parent

    def names(self) -> list[str]:
        """The files that there are, relative to the folder, sorted as paths. Raises OSError."""
        if not self.patterns:
            return [self.base.name] if self.base.is_file() else []
        found = {path for pattern in self.patterns for path in self.base.glob(pattern) if self.holds(path)}
        return [path.relative_to(self.base).as_posix() for path in sorted(found)]

    def holds(self, path: Path) -> bool:
        """Whether a path below the folder is a file, and no part of what is left out."""
        return path.is_file() and not self.leaves_out(path)

    def leaves_out(self, path: Path) -> bool:
        """Whether a path below the folder is hidden, or lies aside."""
        hidden = any(part.startswith(".") for part in path.relative_to(self.base).parts)
        return hidden or any(map(path.resolve().is_relative_to, self.aside))


class Watched(BaseModel):
    """Files that something was made from, and how they looked then: cheap to look at again."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    base: str
    patterns: list[str]
    aside: list[str] = []
    volume: str | None = None
    marks: dict[str, str] = Field(description="Name of each file -> what it is known by.")

    @classmethod
    def now(cls, selection: Selection) -> "Watched":
        """Raises OSError."""
        return cls(
            base=str(selection.base),
            patterns=list(selection.patterns),
            aside=sorted(map(str, selection.aside)),
            volume=str(selection.volume) if selection.volume else None,
            marks=marks(selection),
        )

    def unchanged(self) -> bool:
        """Whether there are the same files, and none looks otherwise."""
        try:
            return marks(self._selection) == self.marks
        except OSError:
            return False

    def changed(self, names: Collection[str]) -> str | None:
        """The first of these files that looks otherwise by now; None where all are what they were."""
        return next(
            (
                name
                for name in names
                if _mark_or_none(self.folder / name, self._selection.volume) != self.marks.get(name)
            ),
            None,
        )

    @property
    def folder(self) -> Path:
        """What names are relative to."""
        return self._selection.folder

    @property
    def _selection(self) -> Selection:
        volume = Path(self.volume) if self.volume else None
        return Selection(Path(self.base), tuple(self.patterns), frozenset(map(Path, self.aside)), volume)


def marks(selection: Selection) -> dict[str, str]:
    """What each file is known by. A file that is gone before it is looked at is none. Raises OSError."""
    found = ((name, _mark_or_none(selection.folder / name, selection.volume)) for name in selection.names())
    return {name: seen for name, seen in found if seen is not None}


def mark(path: Path, volume: Path | None = None) -> str:
    """What a file is known by: of a small one its content.

    Of a large one its size, inode, and times of change. Whoever copies files may set the time of their content back,
    but not that of their inode. What leads out of the `volume`, or into the kernel's files, is known by where it leads,
    and never read. Raises OSError.
    """
    if _leaves_volume(path.resolve(), volume):
        return _leads(path)
    status = path.stat()
    if status.st_size <= SMALL and os.access(path, os.R_OK):
        file, real = open_once(path)  # which may lead elsewhere by now
        with file:
            return _leads(path) if _leaves_volume(real, volume) else hashlib.file_digest(file, "sha256").hexdigest()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _leaves_volume(real: Path, volume: Path | None) -> bool:
    return kernels(real) or (volume is not None and not real.is_relative_to(volume))


def _leads(path: Path) -> str:
    return f"leads to {path.readlink() if path.is_symlink() else path.resolve()}"


def _mark_or_none(path: Path, volume: Path | None) -> str | None:
    try:
        return mark(path, volume)
    except FileNotFoundError:
        return None


def _before_glob(path: Path) -> tuple[Path, str]:
    """The longest parent without wildcards, and the pattern below it (empty: none)."""
    for number, part in enumerate(path.parts):
        if any(sign in part for sign in "*?["):
            return Path(*path.parts[:number]), "/".join(path.parts[number:])
    return path, ""
