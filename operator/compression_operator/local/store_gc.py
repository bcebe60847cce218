"""What of a store no run refers to any more, and its removal.

Removed are artifacts (`artifacts/<phase>-<key>`, and `scores-<key>` of which no student is left) with what says that
they were verified (`verified/<artifact>.json`), those that were set aside as damaged, what attempts left
(`work/<fingerprint>`), and downloads (`hub/models--...`, `hub/datasets--...`) of what no run names: artifacts hold what
they need of them by hard links or copies. Everything else in a store is left alone.
"""

import json
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from compression_operator.api.run import CompressionRun
from compression_operator.core.plan import discovered_in, plan_of
from compression_pipeline.config import SCORES, Phase
from compression_pipeline.config.schemes import Role, caches, scheme_of
from compression_pipeline.store import verified

from .store_probe import recorded_artifact

LIVE = timedelta(hours=1)
"""A job that has touched its heartbeat this lately may still run: hundreds of beats, and clocks of volumes differ."""

_ARTIFACT = re.compile(rf"(?:{'|'.join((*(phase.value for phase in Phase), SCORES))})-[0-9a-f]{{32}}")
_MARKER = re.compile(rf"({_ARTIFACT.pattern})\.json|\.{_ARTIFACT.pattern}\.[0-9a-f]{{32}}")
_ASIDE = re.compile(r"\.(?:damaged|removing)-.+")
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_REMOVING = ".removing-"
_DOWNLOAD = re.compile(r"(?:models|datasets)--.+")
"""As `SourceScheme.download` names folders, and huggingface_hub those of its cache."""


@dataclass(frozen=True)
class Unused:
    """Something in a store that no run refers to."""

    path: Path
    size: int  # bytes that its removal frees, after that of those before it
    changed: datetime


def in_use(store: Path, runs: Iterable[CompressionRun]) -> frozenset[Path]:
    """Folders of the store that these runs refer to: what their steps made or work on, what that was made from, and
    what was downloaded of their sources.
    """
    found: set[Path] = set()
    for run in runs:
        for step in run.status.steps:
            if step.fingerprint is not None:
                found.add(store / "work" / step.fingerprint)
        names = {step.artifact for step in run.status.steps} | {student.artifact for student in run.status.students}
        # Of a step that is under way: what it is about to publish, or to find.
        names |= {f"{step.phase.value}-{step.fingerprint}" for step in run.status.steps}
        # Of one that is done: what its run's status may not say yet.
        notes = [
            recorded_artifact(store, step.fingerprint) for step in run.status.steps if step.fingerprint is not None
        ]
        names |= {name for name in notes if name is not None and _ARTIFACT.fullmatch(name)}
        # As it is told now, which may be more than its status knows.
        planned = plan_of(run, discovered=discovered_in(run.status)).steps
        names |= {step.artifact for step in planned}
        found |= {store / "work" / mark for step in planned for mark in (step.fingerprint, step.key) if mark}
        waiting = [name for name in names if name is not None]
        while waiting:
            artifact = store / "artifacts" / waiting.pop()
            if artifact not in found:
                found.add(artifact)
                waiting += _inputs(artifact)
        sources: list[tuple[Role, str]] = [("model", run.spec.teacher.model)]
        sources.extend(("dataset", source) for source in run.spec.text_sources().values())
        found |= {
            store / scheme.cache / folder
            for role, source in sources
            if (scheme := scheme_of(source)).cache and (folder := scheme.download(role, source))
        }
    return frozenset(found)


def working(store: Path, now: datetime) -> Iterator[tuple[Path, str]]:
    """The work folders in which a job may still run, and what the job calls itself."""
    for folder in _named(store / "work", _FINGERPRINT):
        heartbeat = folder / "heartbeat"
        if heartbeat.exists() and now - _changed(heartbeat, now) < LIVE:
            yield folder, _job(heartbeat)


def unused(store: Path, used: Iterable[Path], *, now: datetime, older_than: timedelta) -> list[Unused]:
    """What may be removed: neither `used`, nor worked on, nor changed for `older_than`."""
    kept = {*used, *(folder for folder, _ in working(store, now))}
    keys = {folder.name for folder in kept if folder.parent.name == "work"}
    found: list[tuple[Path, datetime]] = []
    contents: list[list[Path]] = []
    for folder in (
        *_named(store / "artifacts", _ARTIFACT),
        *_named(store / "artifacts", _ASIDE),
        *_named(store / "work", _FINGERPRINT),
        *_named(store / "work", _ASIDE),
        *(folder for cache in caches() for form in (_DOWNLOAD, _ASIDE) for folder in _named(store / cache, form)),
    ):
        if folder in kept or folder.name.rpartition("-")[2] in keys:
            continue
        files = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
        changed = max(_changed(path, now) for path in files)
        if now - changed >= older_than:
            found.append((folder, changed))
            contents.append(files)
    for marker in _markers_of_nothing(store):
        if now - (changed := _changed(marker, now)) >= older_than:
            found.append((marker, changed))
            contents.append([marker])
    return [Unused(folder, size, changed) for (folder, changed), size in zip(found, _freed(contents), strict=True)]


def remove(found: Unused) -> bool:
    """Remove it, out of sight first: nothing that is half removed is taken for an artifact. Whether it was removed: not
    where a job has begun to use it since it was found. Raises OSError.
    """
    path = found.path
    if path.stat().st_mtime > found.changed.timestamp() + 1:  # a datetime is rounded
        return False
    if path.is_file():
        path.unlink()
        return True
    marker = verified.marker(path.parent.parent, path.name)
    if not path.name.startswith(_REMOVING):
        path = path.rename(path.with_name(f"{_REMOVING}{path.name.lstrip('.')}"))
    shutil.rmtree(path)
    if path.parent.name == "artifacts":
        marker.unlink(missing_ok=True)
    return True


def _markers_of_nothing(store: Path) -> list[Path]:
    """What says that artifacts were verified which are gone, or was not written to its end."""
    folder = store / verified.FOLDER
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    named = [(path, found) for path in entries if path.is_file() and (found := _MARKER.fullmatch(path.name))]
    return [path for path, found in named if found[1] is None or not (store / "artifacts" / found[1]).exists()]


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in entries if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def _inputs(artifact: Path) -> list[str]:
    """Names of the artifacts that one was made from; none where its manifest can't be read."""
    try:
        manifest: dict[str, Any] = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
        return [name for name in manifest["inputs"].values() if isinstance(name, str) and _ARTIFACT.fullmatch(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _job(heartbeat: Path) -> str:
    try:
        return "/".join(str(json.loads(heartbeat.read_text(encoding="utf-8"))["job"]).split("/")[:3])
    except (OSError, ValueError, KeyError, TypeError):
        return "a job"


def _changed(path: Path, now: datetime) -> datetime:
    """When it changed last; now, where it is gone meanwhile. Raises OSError."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, now.tzinfo)
    except FileNotFoundError:
        return now


def _freed(removed: Sequence[Iterable[Path]]) -> Iterator[int]:
    """Bytes that each removal of these frees, one after the other. A file goes with the last of its names, be they in
    artifacts or in the cache of downloads: with none of them where one stays.
    """
    names: Counter[tuple[int, int]] = Counter()
    for paths in removed:
        size = 0
        for path in paths:
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                file = status.st_dev, status.st_ino
                names[file] += 1
                size += status.st_size if names[file] == status.st_nlink else 0
        yield size
