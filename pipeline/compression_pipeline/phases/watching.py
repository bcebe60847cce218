"""Scores of a student by tasks while it is distilled: a loss may fall while what matters gets worse."""

import time
from collections.abc import Callable

import torch

from compression_pipeline.config import ExportDtype, TaskScore
from compression_pipeline.engines import State
from compression_pipeline.engines.history import History

from .observer import Observer

SILENCE_SECONDS = 10.0
"""Longest time of scoring without a line of progress."""


class TaskScores(Observer):
    """Scores the student every `distill.taskInterval` steps, on rank 0, each step once over all attempts."""

    def on_step(self, step: int, history: History, weights: Callable[[], State]) -> None:
        """Add the scores after this step to the history, where it is their turn; every rank calls it.

        Raises PhaseError, the same on every rank: Interrupted once any was told to stop.
        """
        settings = self._job.distill
        due = settings.scores_after(step) or step in (settings.steps, history.total_steps)
        scoring, tasks = self._job.scoring, self._job.tasks
        if scoring is None or tasks is None or not due or any(entry.step == step for entry in history.scores):
            return
        self._context.events.info(f"scores {', '.join(task.name for task in scoring.tasks)} after step {step}")
        state = weights()

        def score(tick: Callable[[], None]) -> list[TaskScore]:
            from compression_pipeline.tasks.live import score_live  # which takes seconds to import

            return score_live(
                self._engine.tensors(state, self._student),
                self._student,
                template=self._template,
                tasks=self._context.store.open(tasks).path,
                settings=scoring,
                rounded=getattr(torch, (self._job.dtype or ExportDtype.BFLOAT16).value),
                precision=self._engine.precision,
                device=self._engine.device,
                tick=self._telling(step, history, tick),
            )

        scores = self._engine.on_rank_0(score)
        self._engine.free()
        history.add_scores(step, scores)
        for found in scores:
            self._context.events.metric(found.name, found.score, step)

    def _telling(self, step: int, history: History, tick: Callable[[], None]) -> Callable[[int, int], None]:
        """What is told after each batch of requests: it says now and then that the job is alive."""
        told = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal told
            tick()
            if time.monotonic() - told >= SILENCE_SECONDS:
                told = time.monotonic()
                loss = history.train[-1].loss if history.train else None
                doing = f"score request {done} of {total}"
                self._context.events.progress(step, history.total_steps, loss=loss, doing=doing)

        return tell
