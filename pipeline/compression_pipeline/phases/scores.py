"""Importance, measured once for a teacher: what each method found is an artifact of its own (`scores-<key>`), so that
another shape of the same teacher is cut without a forward pass.

A prune takes it as any artifact is taken: where it is whole, trusted, and to the byte what was published. Where only
some artifacts are trusted (`spec.cache`) none of these is, because no status tells their digests; nothing is published
then either. A prune keeps a copy of its scores, so the artifact may go at any time.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load_file

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import (
    DEFAULT_ENGINE,
    METHODS,
    SCORES,
    Architecture,
    Axis,
    DocumentAttention,
    Method,
    PruneConfig,
    PruneJob,
    SearchJob,
)
from compression_pipeline.config.fingerprint import fingerprint
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine
from compression_pipeline.huggingface.writer import save_tensors
from compression_pipeline.importance import Scores
from compression_pipeline.phases.cutting import cutting_steps
from compression_pipeline.sizing.sweep import swept_for

FILE = "scores.safetensors"

Job: TypeAlias = PruneJob | SearchJob
"""A job that ranks by scores."""


@dataclass(frozen=True)
class Found:
    """Scores of all axes, and where they are from."""

    scores: Scores
    artifacts: Mapping[str, str] = field(default_factory=dict[str, str])
    """By method: the artifact that has its scores."""
    reused: Collection[str] = ()
    """Methods that were not measured now."""
    seconds: float | None = None
    """That measuring took; None where nothing was measured."""

    @property
    def inputs(self) -> dict[str, str]:
        """As a manifest names them; clean-up keeps what it names."""
        return {f"{SCORES}.{method}": name for method, name in self.artifacts.items()}


def find_or_measure(
    job: Job,
    context: Context,
    engine: Engine,
    teacher: Architecture,
    measure: Callable[[Collection[Axis]], Scores],
) -> Found:
    """The scores of every axis, those that were measured before from the store, the others measured and published.

    Every rank calls it, and gets the same. `measure`: gives the scores of some axes, checked.
    """
    by_method: dict[str, list[Axis]] = {}
    for axis, method in job.prune.importance.by_axis().items():
        by_method.setdefault(method, []).append(axis)
    kept = not context.store.trust.known_only
    keys = (
        {method: key_of(job, context, engine, method, axes, teacher) for method, axes in by_method.items()}
        if kept
        else {}
    )
    # One rank looks: a volume may not show the same to all nodes yet.
    read = {method: _read(context, key, by_method[method]) for method, key in keys.items()} if engine.rank == 0 else {}
    scores: dict[str, Scores] = {method: found for method, found in read.items() if found is not None}
    scores = engine.agree(scores)
    reused, seconds = sorted(scores), None
    for method in reused:
        context.events.info(f"scores reused: {method} was measured before ({SCORES}-{keys[method]})")
    if missing := [axis for method, axes in by_method.items() if method not in scores for axis in axes]:
        started = time.monotonic()
        measured = measure(missing)
        seconds = time.monotonic() - started
        for method in by_method.keys() - scores.keys():
            axes = by_method[method]
            scores[method] = {name: tensor for name, tensor in measured.items() if name.partition(".")[0] in axes}
            if engine.rank == 0 and kept:
                _publish(job, context, method, keys[method], scores[method], seconds)
    found = {name: tensor for method in by_method for name, tensor in scores[method].items()}
    return Found(found, {method: f"{SCORES}-{key}" for method, key in keys.items()}, reused, seconds)


def tasks_of(job: Job) -> dict[str, str]:
    """The input that only some students need."""
    return {"tasks": job.tasks} if job.tasks is not None else {}


def dropped(prune: PruneConfig, teacher: Architecture) -> int | None:
    """How many layers are cut by their scores; None where none are, or where the manifest names them."""
    return teacher.layers - prune.layers or None if prune.layers is not None else None


def key_of(
    job: Job, context: Context, engine: Engine, method: str, axes: Collection[Axis], teacher: Architecture
) -> str:
    """Key of the scores of one method: what is measured, how, in which arithmetic, on which text and which weights.

    Inputs enter by their content, because one that is made anew under its name may be another. Sizes of the student do
    not enter, but the number of layers that the first cut takes where that is measured by itself.
    """
    prune = job.prune
    cut = dropped(cutting_steps(teacher, prune)[0], teacher)
    how = {
        "method": method,
        "axes": ",".join(sorted(axes)),
        "aggregation": prune.importance.aggregation if METHODS[method].aggregates else None,
        "samples": _samples(prune, METHODS[method]),
        "dropped": swept_for(cut) if METHODS[method].sweeps else None,
        "evaluate": job.evaluate.by_content if METHODS[method].asks and job.evaluate is not None else None,
        "sequence_length": job.sequence_length,
        "document_attention": None if job.document_attention is DocumentAttention.SHARED else job.document_attention,
        "engine": job.engine if job.engine != DEFAULT_ENGINE else None,
        "precision": engine.precision.value,
    }
    read = {"teacher": context.store.open(job.teacher).content}
    if METHODS[method].asks and job.evaluate is not None and job.tasks is not None:
        from compression_pipeline.tasks.fetching import digest_of, read_definitions  # lm-eval takes seconds to import

        definitions = read_definitions(context.store.open(job.tasks).path)
        read |= {f"tasks.{task.name}": digest_of(definitions.get(task.name)) for task in job.evaluate.tasks}
    else:
        read["data"] = context.store.open(job.data).content
    return fingerprint(SCORES, how, read)


def _samples(prune: PruneConfig, method: Method) -> int | None:
    if method.asks:
        return None  # of the task
    return prune.importance.held_out_sequences if method.held_out else prune.calibration_samples


def _read(context: Context, key: str, axes: Collection[Axis]) -> Scores | None:
    """What was published under the key; None where nothing was that can be taken."""
    artifact: Artifact | None = context.sound(context.store.find(f"{SCORES}-{key}"))
    if artifact is None:
        return None
    try:
        found = load_file(context.store.use(artifact).path / FILE)
    except (OSError, SafetensorError):
        return None
    return found if all(axis in found for axis in axes) else None


def _publish(job: Job, context: Context, method: str, key: str, scores: Scores, seconds: float) -> None:
    """For rank 0. Another job may have been first, with the same scores up to rounding: each keeps its own."""
    with context.store.draft(SCORES, key) as draft:
        save_tensors(scores, draft.path / FILE)
        draft.publish(
            config={"method": method, "importance": job.prune.importance.to_json(), "step": job.step},
            inputs={"data": job.data, "teacher": job.teacher, **tasks_of(job)},
            result={},
            metrics={"seconds": seconds},  # of all methods that were measured with it
        )
