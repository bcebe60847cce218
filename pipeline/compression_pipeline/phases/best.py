"""The best weights of a distillation: written at each validation that is the best so far, read at its end.

They lie in the attempt's folder as Hugging Face checkpoints in float32, so that they come back to the last bit. Kept
are the best so far, and the best up to each checkpoint that is kept: who resumes there may find no better ones.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from compression_pipeline.engines import State
from compression_pipeline.engines.history import History, ValidationEntry

from .observer import Observer
from .snapshots import is_of, is_whole, lineage, name_of, step_of, write_snapshot

FOLDER = "best"


class BestWeights(Observer):
    """The best weights of one step of a run, over all its attempts."""

    def on_step(self, step: int, history: History, weights: Callable[[], State]) -> None:
        """Keep the weights after a step whose validation is the best so far; every rank calls it.

        Raises PhaseError, the same on every rank, where rank 0 can't write them.
        """
        if not history.validation or history.validation[-1].step != step:
            return
        best = history.best(self._job.distill.best_task)
        if best is None or best.step != step:
            return
        of = lineage(self._job.fingerprint, history, step)
        target = self._context.folder / FOLDER / name_of(step)
        if self._engine.agree(self._engine.rank == 0 and is_of(target, of)):
            return
        state = weights()

        def write() -> None:
            tensors = self._engine.tensors(state, self._student)
            write_snapshot(tensors, self._student, target, template=self._template, dtype=torch.float32, of=of)
            self._remove_older(history)

        self._write_on_rank_0(write, self._context.folder)

    def find(self, history: History) -> tuple[ValidationEntry, Path | None]:
        """The best of the validations whose weights are there, and the checkpoint of these; None for the weights after
        the last step, which the caller has. Every rank calls it.

        Where the best weights are gone, because somebody removed them, or are those of an earlier course of this
        training, the best that are left are taken, with a warning.
        """
        for entry in history.ranked(self._job.distill.best_task):
            if entry == history.validation[-1]:
                return entry, None
            found = self._engine.agree(self._found(entry.step, history) if self._engine.rank == 0 else None)
            if found is not None:
                return entry, found
        raise AssertionError("the last step is always validated")

    def _remove_older(self, history: History) -> None:
        """Remove what is the best of no checkpoint that is kept, nor of the next one."""
        if not self._context.owns_step():
            return
        settings = self._job.distill
        newest = history.validation[-1].step // settings.checkpoint_interval
        ends = [
            number * settings.checkpoint_interval for number in range(newest, newest - settings.keep_checkpoints, -1)
        ]
        task = self._job.distill.best_task
        needed = {best.step for until in (None, *ends) if (best := history.best(task, until)) is not None}
        for folder in self._all():
            if (step := step_of(folder)) is not None and step not in needed:
                shutil.rmtree(folder, ignore_errors=True)

    def _found(self, step: int, history: History) -> Path | None:
        """For rank 0; says why weights of this step are not taken."""
        of, why = lineage(self._job.fingerprint, history, step), "gone"
        for folder in self._all():
            if step_of(folder) != step:
                continue
            if not is_of(folder, of):
                why = "those of an earlier course of this training"
            elif not is_whole(folder):
                why = "damaged"
            else:
                return folder
        self._context.events.warning(f"the weights after step {step} are {why}; takes the next best")
        return None

    def _all(self) -> list[Path]:
        """Of all attempts, the newest first."""
        attempts = self._context.store.earlier_attempts(self._job.fingerprint)
        folders = [self._context.folder, *(folder for folder in attempts if folder != self._context.folder)]
        return [path for folder in folders if (folder / FOLDER).is_dir() for path in (folder / FOLDER).iterdir()]
