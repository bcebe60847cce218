"""Checkpoints of a training phase: written whole or not at all, verified before they are believed.

`<launch's own folder>/checkpoints/step-00000100/` holds Megatron's distributed checkpoint (model, sharded optimizer
state, random generators), `progress.json` (step and history) and `manifest.json` (size and SHA-256 of every file). It
is filled under the name `step-00000100.tmp`, forced to disk and renamed. One that doesn't match its manifest is set
aside as `damaged-step-00000100` with a warning, and the one before is used.
"""

import contextlib
import json
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker, get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from compression_pipeline.artifact import sha256, sync
from compression_pipeline.context import Context
from compression_pipeline.errors import torn_write

from .history import History
from .optimizer import Optimizer
from .runtime import Runtime

if TYPE_CHECKING:
    from megatron.core.transformer.module import MegatronModule

MANIFEST = "manifest.json"
PROGRESS = "progress.json"
NAME = re.compile(r"step-(\d{8,})")


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
            with _write_faults(draft):
                dist_checkpointing.save(_state(model, optimizer, self._runtime), str(draft), InProcessSave())
            if first:
                (draft / PROGRESS).write_text(
                    json.dumps({"step": step, "ranks": self._runtime.world_size, "history": history.to_json()})
                )
            mine = {path.name: _record(path) for path in sorted(draft.iterdir()) if self._is_mine(path.name)}
            gathered: list[dict[str, Any]] = [{} for _ in range(self._runtime.world_size)]
            dist.all_gather_object(gathered, mine)
            if first:
                files = {name: record for records in gathered for name, record in records.items()}
                (draft / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1))
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
        while True:
            path = self._agree_on_newest()
            if path is None:
                return None
            fault = self._fault(path)
            if fault is None:
                break
            if self._runtime.rank == 0:
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
            self._events.warning(f"checkpoint {path} is damaged ({fault}); the one before is used")
            dist.barrier()
        progress = json.loads((path / PROGRESS).read_text())
        same_ranks = progress["ranks"] == self._runtime.world_size
        state = _state(model, optimizer, self._runtime)
        if not same_ranks:  # each rank's generators mean nothing to another number of ranks
            del state["generators"]
        loaded = cast("dict[str, Any]", dist_checkpointing.load(state, str(path)))
        model.load_state_dict(loaded["model"])
        optimizer.load(loaded["optimizer"], progress["step"])
        if same_ranks:
            _restore_generators(loaded["generators"], self._runtime)
        return Resumed(progress["step"], History.from_json(progress["history"]), path)

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

    def _fault(self, path: Path) -> str | None:
        """What is wrong with a checkpoint; the ranks share the reading and all get the answer."""
        mine: str | None = None
        try:
            files = json.loads((path / MANIFEST).read_text())["files"]
            for name in sorted(files)[self._runtime.rank :: self._runtime.world_size]:
                if not (path / name).is_file():
                    mine = f"{name} is missing"
                elif (size := (path / name).stat().st_size) != files[name]["size"]:
                    mine = f"{name} has {size} bytes instead of {files[name]['size']}"
                elif sha256(path / name) != files[name]["sha256"]:
                    mine = f"{name} has another SHA-256 than {MANIFEST} says"
                if mine:
                    break
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            mine = f"{MANIFEST} can't be read: {error}"
        found: list[str | None] = [None] * self._runtime.world_size
        dist.all_gather_object(found, mine)
        return next((fault for fault in found if fault), None)

    def _is_mine(self, name: str) -> bool:
        """Whether this rank wrote a file: `__<rank>_<n>.distcp` are each rank's own, all others rank 0's."""
        writer = re.match(r"__(\d+)_", name)
        return (int(writer[1]) if writer else 0) == self._runtime.rank


class InProcessSave(TorchDistSaveShardedStrategy):
    """Megatron's `torch_dist` format, written by this process.

    Megatron's own strategy starts a manager and a writer process for every save, to write while training goes on. That
    costs seconds for a small model, and forks a process that has threads. The files are the same.
    """

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: Any, checkpoint_dir: str | Path) -> None:
        """Write this rank's part; returns when it is on disk."""
        flat, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        save_sharded(
            mcore_to_pyt_state_dict(flat, False),
            storage_writer=FileSystemWriter(checkpoint_dir),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def _state(model: "MegatronModule", optimizer: Optimizer, runtime: Runtime) -> dict[str, Any]:
    return {
        "model": model.sharded_state_dict(),
        "optimizer": optimizer.sharded_state(),
        "generators": ShardedObject("generators", _generators(runtime), (runtime.world_size,), (runtime.rank,)),
    }


def _generators(runtime: Runtime) -> dict[str, Any]:
    """States of this rank's random generators. Nothing draws from them while dropout is off."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if runtime.on_gpu:
        states["cuda"] = torch.cuda.get_rng_state()
        states["tracker"] = _tracker().get_states()
    return states


def _restore_generators(states: dict[str, Any], runtime: Runtime) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = states["numpy"]
    numpy.random.set_state((name, keys.numpy().astype(numpy.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if runtime.on_gpu:
        torch.cuda.set_rng_state(states["cuda"].cpu())
        _tracker().set_states({name: state.cpu() for name, state in states["tracker"].items()})


def _tracker() -> CudaRNGStatesTracker:
    return cast("CudaRNGStatesTracker", get_cuda_rng_tracker())


@contextlib.contextmanager
def _write_faults(folder: Path) -> Iterator[None]:
    """Let the fault of a write into `folder` through as what it was: torch wraps those of all ranks into one."""
    try:
        yield
    except CheckpointException as error:
        faults = [fault for fault, _ in error.failures.values()]
        told = next((told for fault in faults if (told := torn_write(fault, folder))), None)
        raise told or faults[0] from error


def _record(path: Path) -> dict[str, Any]:
    sync(path)
    return {"size": path.stat().st_size, "sha256": sha256(path)}
