"""Checkpoints of a training phase: written whole or not at all, verified before they are believed.

`<launch's own folder>/checkpoints/step-00000100/` holds a file of tensors for every rank (model and sharded optimizer
state: `shards`; its header has the rank's random generators), `progress.json` (step and history) and `manifest.json`
(size and SHA-256 of every file). It is filled under the name `step-00000100.tmp`, forced to disk and renamed. One that
doesn't match its manifest, or isn't of this format, is set aside as `damaged-step-00000100` with a warning, and the one
before is used.

Any attempt's are read, of whoever may write into the store. So they are data alone: JSON and safetensors, no pickles.
"""

import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker, get_cuda_rng_tracker

from compression_pipeline.artifact import sha256, sync
from compression_pipeline.context import Context
from compression_pipeline.errors import TransientError, torn_write

from . import shards
from .history import History
from .optimizer import Optimizer
from .runtime import Runtime
from .shards import Reading, Unreadable

if TYPE_CHECKING:
    from megatron.core.transformer.module import MegatronModule

Checked = TypeVar("Checked")

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
NAME = re.compile(r"step-(\d{8,})")
FORMAT = 2
"""Version of the files; the first was torch's, whose index is a pickle."""


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

    def newest(self) -> Path | None:
        """The newest checkpoint that is there, unverified."""
        found = self._all()
        return found[0] if found else None

    def save(self, step: int, model: "MegatronModule", optimizer: Optimizer, history: History) -> Path:
        """Write the state after `step` steps; then remove what is older than the `keep` newest.

        Raises TransientError or OSError where it can't be written whole, e.g. on a full disk; nothing is left of the
        attempt then, and older checkpoints stay.
        """
        target = self._folders[0] / f"step-{step:08d}"
        draft = target.with_name(target.name + ".tmp")
        first = self._runtime.rank == 0
        try:
            if first:
                for leftover in (draft, target):
                    shutil.rmtree(leftover, ignore_errors=True)
                draft.mkdir(parents=True)
            dist.barrier()
            files = self._write(draft, step, model, optimizer, history)
            if first:
                manifest = {"format": FORMAT, "step": step, "files": files}
                (draft / MANIFEST).write_text(json.dumps(manifest, indent=1))
                sync(draft / MANIFEST)
                sync(draft)
                draft.rename(target)
                sync(target.parent)
        except BaseException:
            if first:
                shutil.rmtree(draft, ignore_errors=True)
            raise
        # A job that was paused may wake while another goes on from its checkpoints.
        if first and self._context.owns_step():
            for old in self._all()[self._keep :]:
                shutil.rmtree(old, ignore_errors=True)
        dist.barrier()
        return target

    def load(self, model: "MegatronModule", optimizer: Optimizer) -> Resumed | None:
        """Restore the newest whole checkpoint of any attempt; None where there is none."""
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
                if self._runtime.rank == 0:
                    aside = path.with_name(f"damaged-{path.name}")
                    shutil.rmtree(aside, ignore_errors=True)
                    path.rename(aside)
                self._events.warning(f"checkpoint {path} is damaged ({fault}); the one before is used")
                dist.barrier()
        content.reading.copy()
        optimizer.resume(content.step)
        return Resumed(content.step, content.history, path)

    def _write(
        self, folder: Path, step: int, model: "MegatronModule", optimizer: Optimizer, history: History
    ) -> dict[str, Any]:
        """Write every rank's file and the progress; returns what the manifest says of them.

        Raises TransientError or OSError on every rank where any can't write.
        """
        runtime, fault = self._runtime, None
        mine: dict[str, Any] = {}
        try:
            name = _file_of(runtime.rank)
            mine[name] = shards.write(folder / name, shards.parts_of(_state(model, optimizer)), _generators(runtime))
            if runtime.rank == 0:
                progress = {"step": step, "ranks": runtime.world_size, "history": history.to_json()}
                (folder / PROGRESS).write_text(json.dumps(progress))
                mine[PROGRESS] = _record(folder / PROGRESS)
        except OSError as error:
            fault = torn_write(error, folder) or error
        told: list[tuple[dict[str, Any], str | None]] = [({}, None)] * runtime.world_size
        dist.all_gather_object(told, (mine, str(fault) if fault else None))
        if fault:
            raise fault
        lost = next((said for _, said in told if said), None)
        if lost:
            raise TransientError(lost)
        return {name: record for records, _ in told for name, record in records.items()}

    def _all(self) -> list[Path]:
        """Checkpoints of all attempts: most steps first, of the same step the newest attempt's first."""
        found = [
            (int(match[1]), -age, path)
            for age, folder in enumerate(self._folders)
            for path in (folder.iterdir() if folder.is_dir() else ())
            if (match := NAME.fullmatch(path.name))
        ]
        return [path for *_, path in sorted(found, reverse=True)]

    def _agree_on_newest(self) -> Path | None:
        choice: list[Path | None] = [self.newest() if self._runtime.rank == 0 else None]
        dist.broadcast_object_list(choice, src=0)
        return choice[0]

    def _together(self, check: "Callable[[], Checked]") -> "Checked":
        """`check` of every rank. Raises Unreadable on all of them where it is raised on any."""
        mine: str | None = None
        checked: list[Checked] = []
        try:
            checked.append(check())
        except Unreadable as error:
            mine = str(error)
        found: list[str | None] = [None] * self._runtime.world_size
        dist.all_gather_object(found, mine)
        for fault in found:
            if fault is not None:
                raise Unreadable(fault)
        return checked[0]

    def _compare(self, path: Path) -> None:
        """Compare this rank's share of the files with the manifest. Raises Unreadable."""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if manifest.get("format") != FORMAT:
                raise Unreadable("it is in the format of another version, which is not read")
            files = manifest["files"]
            for name in sorted(files)[self._runtime.rank :: self._runtime.world_size]:
                if not (path / name).is_file():
                    raise Unreadable(f"{name} is missing")
                if (size := (path / name).stat().st_size) != files[name]["size"]:
                    raise Unreadable(f"{name} has {size} bytes instead of {files[name]['size']}")
                if sha256(path / name) != files[name]["sha256"]:
                    raise Unreadable(f"{name} has another SHA-256 than {MANIFEST} says")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"{MANIFEST} can't be read: {error}") from error

    def _look(self, path: Path, wanted: list[shards.Part]) -> "_Found":
        """What a checkpoint holds; the random generators are set already, its tensors not copied yet.

        Raises Unreadable.
        """
        try:
            progress = json.loads((path / PROGRESS).read_text())
            step, ranks = int(progress["step"]), int(progress["ranks"])
            history = History.from_json(progress["history"])
            reading = Reading([path / _file_of(rank) for rank in range(ranks)], wanted)
            if ranks == self._runtime.world_size:  # each rank's generators mean nothing to another number of ranks
                _restore_generators(reading.extra[self._runtime.rank], self._runtime)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from error
        return _Found(step, history, reading)


@dataclass(frozen=True)
class _Found:
    """A checkpoint that was looked through."""

    step: int
    history: History
    reading: Reading


def _file_of(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _state(model: "MegatronModule", optimizer: Optimizer) -> dict[str, Any]:
    return {"model": model.sharded_state_dict(), "optimizer": optimizer.sharded_state()}


def _generators(runtime: Runtime) -> dict[str, Any]:
    """States of this rank's random generators, for JSON. Nothing draws from them while dropout is off."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, numpy.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _hex(torch.get_rng_state()),
    }
    if runtime.on_gpu:
        states["cuda"] = _hex(torch.cuda.get_rng_state())
        states["tracker"] = {name: _hex(state) for name, state in _tracker().get_states().items()}
    return states


def _restore_generators(states: dict[str, Any], runtime: Runtime) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    torch.set_rng_state(_unhex(states["torch"]))
    if runtime.on_gpu:
        torch.cuda.set_rng_state(_unhex(states["cuda"]))
        _tracker().set_states({name: _unhex(state) for name, state in states["tracker"].items()})


def _hex(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _unhex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _tracker() -> CudaRNGStatesTracker:
    return cast("CudaRNGStatesTracker", get_cuda_rng_tracker())


def _record(path: Path) -> dict[str, Any]:
    sync(path)
    return {"size": path.stat().st_size, "sha256": sha256(path)}
