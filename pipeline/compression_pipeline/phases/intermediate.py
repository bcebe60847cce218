"""Checkpoints that are exported in the middle of a distillation, each a folder that transformers loads.

They lie in `work/<fingerprint>/exports/step-<step>` of the store, beside the attempts, so that they stay when the
student is published. `compression gc` removes them with the folder once no run refers to the step.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compression_pipeline.config import ExportDtype
from compression_pipeline.engines import State
from compression_pipeline.engines.history import History
from compression_pipeline.report.card import intermediate_card

from .observer import Observer
from .snapshots import is_of, lineage, name_of, step_of, write_snapshot

FOLDER = "exports"


class IntermediateExports(Observer):
    """Exports the student every `distill.exportEvery` steps, and keeps the newest."""

    _told = False
    """Whether the newest export of earlier attempts was looked for."""

    def on_step(self, step: int, history: History, weights: Callable[[], State]) -> None:
        """Export the weights after this step, where it is their turn; every rank calls it.

        The last step's are left to the phase export, unless it may not be the last one (`extendSteps`).

        Raises PhaseError, the same on every rank, where rank 0 can't write them; then no folder of this step is left.
        """
        if self._job.distill.export_every is None:
            return
        self._tell_newest(step)
        extends = self._job.accept is not None and self._job.accept.extend_steps is not None
        if not self._job.distill.exports_after(step) or (step == history.total_steps and not extends):
            return
        of, target = self._lineage(history, step), self._folder / name_of(step)
        # Another launch that holds the step exports the same: two must not write one folder.
        done = self._engine.rank == 0 and (is_of(target, of) or not self._context.owns_step())
        if not self._engine.agree(done):
            state = weights()
            self._write_on_rank_0(lambda: self._write(state, step, history, target), self._folder)
        self._context.events.note(exported_step=step)

    @property
    def _folder(self) -> Path:
        return self._context.store.work_folder(self._job.fingerprint) / FOLDER

    @property
    def _dtype(self) -> ExportDtype:
        return self._job.dtype or ExportDtype.BFLOAT16

    def _lineage(self, history: History, step: int) -> dict[str, Any]:
        return {**lineage(self._job.fingerprint, history, step), "dtype": self._dtype.value}

    def _tell_newest(self, step: int) -> None:
        """Tell once which export is the newest that earlier attempts have left up to this step."""
        if self._told or self._engine.rank != 0:
            return
        self._told = True
        if reached := self._reached(self._folder / name_of(step)):
            self._context.events.note(exported_step=step_of(reached[-1]))

    def _reached(self, target: Path) -> list[Path]:
        """Exports up to that of the name, the oldest first. Later ones are of a launch that was killed, whose steps
        this one repeats: it comes to them.
        """
        found = (path for path in self._folder.glob("step-*") if step_of(path) is not None)
        return sorted(path for path in found if path.name <= target.name)

    def _write(self, state: State, step: int, history: History, target: Path) -> None:
        dtype = self._dtype
        self._folder.mkdir(parents=True, exist_ok=True)
        for half in self._folder.glob("*.tmp"):  # a launch that was killed left it
            shutil.rmtree(half, ignore_errors=True)
        write_snapshot(
            self._engine.tensors(state, self._student),
            self._student,
            target,
            template=self._template,
            dtype=getattr(torch, dtype.value),
            of=self._lineage(history, step),
            card=intermediate_card(self._student, step, history.total_steps, dtype, self._template),
        )
        for older in self._reached(target)[: -self._job.distill.export_keep]:
            shutil.rmtree(older, ignore_errors=True)
        place = target.relative_to(self._context.store.root)
        self._context.events.info(f"exported the weights after step {step} to {place} of the store")
