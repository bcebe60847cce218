"""Checkpoints of a training phase: written whole or not at all, verified before they are believed.

`<launch's own folder>/checkpoints/step-00000100/` holds a file of tensors for every rank (model and sharded optimizer
state: `shards`; its header has the rank's random generators), `progress.json` (step and history) and `manifest.json`
(size and SHA-256 of every file). It is filled under the name `step-00000100.tmp`, forced to disk and renamed. The same
name is what it is removed under.

Three things may be wrong with one. What doesn't match its manifest, or can't be parsed, is damaged: it is set aside as
`damaged-step-00000100` with a warning, and the one before is used. What lacks a file, or what another version or
another model wrote, is skipped with a warning and stays where it is, for whoever can read it. What can't be read for
now is no fault of the checkpoint: the job ends on all ranks, and another attempt reads it.

Any attempt's are read, of whoever may write into the store. So they are data alone: JSON and safetensors, no pickles.
"""

import contextlib
import json
import re
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from compression_pipeline.context import Context
from compression_pipeline.engines.history import History
from compression_pipeline.errors import PhaseError, TransientError, torn_write
from compression_pipeline.faults import classify
from compression_pipeline.store.files import sha256, sync

from . import generators, shards
from .generators import Generators
from .optimizer import Optimizer
from .runtime import Runtime
from .shards import Foreign, Missing, Reading, Unreadable

if TYPE_CHECKING:
    from megatron.core.transformer.module import MegatronModule

Done = TypeVar("Done")

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
NAME = re.compile(r"step-(\d{8,})")
FORMAT = 3
"""Version of the files. The first was torch's, whose index is a pickle, and its manifest stated no number; the second
kept moments as flat tensors, which only ranks with the same matrices could read.
"""
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What parsing raises for content that is not what was written."""


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on."""

    step: int
    """Optimizer steps done."""
    history: History
    path: Path


class Checkpoints:
    """The checkpoints of one step of a run, over all its attempts. Every method is to be called by all ranks."""

    def __init__(self, context: Context, fingerprint: str, runtime: Runtime, *, keep: int) -> None:
        """Those of the step `fingerprint`; new ones go into the context's folder. `keep`: how many stay."""
        self._context = context
        others = [folder for folder in context.store.earlier_attempts(fingerprint) if folder != context.folder]
        self._folders = [folder / "checkpoints" for folder in (context.folder, *others)]
        self._runtime = runtime
        self._events = context.events
        self._keep = keep
        self._skipped: set[Path] = set()

    def newest(self) -> Path | None:
        """The newest checkpoint that is there, unverified; none of those that `load` skipped."""
        found = self._all()
        return found[0] if found else None

    def save(self, step: int, model: "MegatronModule", optimizer: Optimizer, history: History) -> Path:
        """Write the state after `step` steps; then remove what is older than the `keep` newest.

        Raises PhaseError, the same on every rank, where any can't write its part, e.g. on a full disk; nothing is left
        of the attempt then, and older checkpoints stay.
        """
        target = self._folders[0] / f"step-{step:08d}"
        draft = target.with_name(target.name + ".tmp")
        first = self._runtime.rank == 0
        try:
            # Where one rank fails the others hear of it at once: they would wait for it, or blame themselves.
            self._together(lambda: self._begin(draft, target) if first else None)
            files = self._write(draft, step, model, optimizer, history)
            self._together(lambda: self._finish(draft, target, step, files) if first else None)
        except BaseException:
            if first:
                shutil.rmtree(draft, ignore_errors=True)
            raise
        self._together(lambda: self._remove_older() if first else None)
        return target

    def load(self, model: "MegatronModule", optimizer: Optimizer) -> Resumed | None:
        """Restore the newest whole checkpoint of any attempt; None where there is none.

        Raises PhaseError on every rank where any can't read.
        """
        wanted = shards.parts_of(_state(model, optimizer))
        while True:
            path = self._agree_on_newest()
            if path is None:
                return None
            try:
                # Nothing is parsed by any rank before all have compared their share of the files with the manifest.
                self._together(partial(self._compare, path))
                content = self._together(partial(self._look, path, wanted))
                break
            except Unreadable as fault:
                if isinstance(fault, Foreign | Missing):
                    self._skipped.add(path)
                else:
                    self._together(partial(self._set_aside, path))
                what = "skipped" if isinstance(fault, Foreign) else "damaged"
                self._events.warning(f"checkpoint {path} is {what} ({fault}); the one before is used")
        self._together(partial(self._restore, content))
        optimizer.resume(content.step)
        return Resumed(content.step, content.history, path)

    def _begin(self, draft: Path, target: Path) -> None:
        shutil.rmtree(draft, ignore_errors=True)
        _remove(target)
        draft.mkdir(parents=True)

    def _write(
        self, folder: Path, step: int, model: "MegatronModule", optimizer: Optimizer, history: History
    ) -> dict[str, Any]:
        """Write every rank's file and the progress; returns what the manifest says of them.

        Raises PhaseError on every rank where any can't write.
        """
        mine = self._together(partial(self._write_mine, folder, step, model, optimizer, history))
        told: list[dict[str, Any]] = [{}] * self._runtime.world_size
        dist.all_gather_object(told, mine)
        return {name: record for records in told for name, record in records.items()}

    def _write_mine(
        self, folder: Path, step: int, model: "MegatronModule", optimizer: Optimizer, history: History
    ) -> dict[str, Any]:
        runtime, written = self._runtime, dict[str, Any]()
        try:
            name = _file_of(runtime.rank)
            written[name] = shards.write(
                folder / name, shards.parts_of(_state(model, optimizer)), generators.states(runtime)
            )
            if runtime.rank == 0:
                progress = {"step": step, "ranks": runtime.world_size, "history": history.to_json()}
                (folder / PROGRESS).write_text(json.dumps(progress))
                written[PROGRESS] = _record(folder / PROGRESS)
        except OSError as error:
            raise torn_write(error, folder) or error from error
        return written

    def _finish(self, draft: Path, target: Path, step: int, files: dict[str, Any]) -> None:
        manifest = {"format": FORMAT, "step": step, "files": files}
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
        sync(draft / MANIFEST)
        sync(draft)
        draft.rename(target)
        sync(target.parent)

    def _remove_older(self) -> None:
        # A job that was paused may wake while another goes on from its checkpoints.
        if self._context.owns_step():
            with contextlib.suppress(OSError):
                for old in self._all()[self._keep :]:
                    _remove(old)

    def _all(self) -> list[Path]:
        """Checkpoints of all attempts: most steps first, of the same step the newest attempt's first."""
        found = [
            (int(match[1]), -age, path)
            for age, folder in enumerate(self._folders)
            for path in (folder.iterdir() if folder.is_dir() else ())
            if (match := NAME.fullmatch(path.name)) and path not in self._skipped
        ]
        return [path for *_, path in sorted(found, reverse=True)]

    def _agree_on_newest(self) -> Path | None:
        choice = [self._together(lambda: self.newest() if self._runtime.rank == 0 else None)]
        dist.broadcast_object_list(choice, src=0)
        return choice[0]

    def _together(self, act: "Callable[[], Done]") -> "Done":
        """`act` of every rank. Raises on all of them where it raises on any, so that none waits for another.

        What is raised is the same on all: a PhaseError, or Unreadable where every fault is one.
        """
        mine: Exception | None = None
        fault: PhaseError | Unreadable | None = None
        done: list[Done] = []
        try:
            done.append(act())
        except Exception as error:
            mine, fault = error, error if isinstance(error, Unreadable) else classify(error)
        found: list[PhaseError | Unreadable | None] = [None] * self._runtime.world_size
        dist.all_gather_object(found, fault)
        faults = [one for one in found if one is not None]
        if faults:
            raise min(faults, key=_weight) from mine
        return done[0]

    def _compare(self, path: Path) -> None:
        """Compare this rank's share of the files with the manifest. Raises Unreadable, OSError."""
        try:
            list(path.iterdir())  # NFS looks again for the files that it didn't find before
            manifest = json.loads((path / MANIFEST).read_text())
            _check_format(manifest.get("format", 1 if "files" in manifest else None))
            files = manifest["files"]
            for name in sorted(files)[self._runtime.rank :: self._runtime.world_size]:
                size, digest = files[name]["size"], files[name]["sha256"]
                found = (path / name).stat()
                if not stat.S_ISREG(found.st_mode):
                    raise Unreadable(f"{name} is no file")
                if found.st_size != size:
                    raise Unreadable(f"{name} has {found.st_size} bytes instead of {size}")
                if sha256(path / name) != digest:
                    raise Unreadable(f"{name} has another SHA-256 than {MANIFEST} says")
        except FileNotFoundError as error:
            raise Missing(error) from error
        except (*_NONSENSE, IsADirectoryError, NotADirectoryError) as error:
            raise Unreadable(f"{MANIFEST} can't be read: {error}") from error

    def _look(self, path: Path, wanted: list[shards.Part]) -> "_Found":
        """What a checkpoint holds; nothing of it is restored yet. Raises Unreadable, OSError."""
        try:
            progress = json.loads((path / PROGRESS).read_text())
            step, ranks = int(progress["step"]), int(progress["ranks"])
            history = History.from_json(progress["history"])
            reading = Reading([path / _file_of(rank) for rank in range(ranks)], wanted)
            # Each rank's generators mean nothing to another number of ranks.
            extra = reading.extra[self._runtime.rank] if ranks == self._runtime.world_size else None
            generators = None if extra is None else Generators.parse(extra)
        except FileNotFoundError as error:
            raise Missing(error) from error
        except _NONSENSE as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        return _Found(step, history, reading, generators)

    def _restore(self, content: "_Found") -> None:
        if content.generators:
            content.generators.restore(self._runtime)
        content.reading.copy()

    def _set_aside(self, path: Path) -> None:
        if self._runtime.rank == 0:
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


@dataclass(frozen=True)
class _Found:
    """A checkpoint that was looked through."""

    step: int
    history: History
    reading: Reading
    generators: Generators | None


def _file_of(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _state(model: "MegatronModule", optimizer: Optimizer) -> dict[str, Any]:
    return {"model": model.sharded_state_dict(), "optimizer": optimizer.sharded_state()}


def _check_format(stated: Any) -> None:
    if type(stated) is not int:
        raise Unreadable(f"{MANIFEST} states no format")
    if stated != FORMAT:
        raise Foreign(f"it is in format {stated}, this version reads {FORMAT}")


def _weight(fault: PhaseError | Unreadable) -> int:
    """The least first: where one rank can't read for now, what another found says nothing."""
    match fault:
        case Foreign() | Missing():
            return 3
        case Unreadable():
            return 2
        case TransientError():
            return 0
        case _:
            return 1


def _remove(path: Path) -> None:
    """Remove a checkpoint under a name that nobody reads: who is killed meanwhile leaves no half of one."""
    draft = path.with_name(path.name + ".tmp")
    with contextlib.suppress(OSError):
        path.rename(draft)
        shutil.rmtree(draft, ignore_errors=True)


def _record(path: Path) -> dict[str, Any]:
    sync(path)
    return {"size": path.stat().st_size, "sha256": sha256(path)}
