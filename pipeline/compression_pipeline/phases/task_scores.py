"""What a model scored in a task, an artifact of its own (`scores-<key>`): of tasks that were edited only what is new is
scored, and an evaluation that was interrupted goes on with its next task.

Taken and left as importance is (`scores`): not where only some artifacts are trusted (`spec.cache`).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import SCORES, EvaluateJob, TaskConfig, digest
from compression_pipeline.config.fingerprint import fingerprint
from compression_pipeline.context import Context
from compression_pipeline.tasks.fetching import read_definitions
from compression_pipeline.tasks.harness import harness_version

FILE = "figures.json"

Figures = Mapping[str, Any]
"""All that lm-eval tells of one model in one task, as `tasks.scoring.measure` gives it."""


def find_or_score(
    job: EvaluateJob,
    context: Context,
    model: Artifact,
    tasks: Artifact,
    arithmetic: str,
    measure: Callable[[TaskConfig], Figures],
) -> Iterator[tuple[TaskConfig, Figures, str | None]]:
    """Each task with its figures, those that were measured before from the store, the others measured and published,
    and the artifact that has them.

    `arithmetic`: device and type that the model is computed in. `measure`: scores the model in a task.
    """
    kept = not context.store.trust.known_only
    told = read_definitions(tasks.path)
    for task in job.evaluate.tasks:
        key = key_of(job, task, model, told.get(task.name), arithmetic)
        name = f"{SCORES}-{key}" if kept else None
        figures = _read(context, name) if name else None
        if figures is not None:
            context.events.info(f"score reused: {task.name} was measured before ({name})")
        else:
            figures = measure(task)
            if name:
                _publish(job, context, key, task, figures)
        yield task, figures, name


def key_of(job: EvaluateJob, task: TaskConfig, model: Artifact, definition: Any, arithmetic: str) -> str:
    """Key of the figures of one task: the checkpoint with its tokenizer, the task's definition and questions, lm-eval's
    version, what is asked, and how it is computed. Metric and filter do not enter, because lm-eval tells all of them.
    """
    asked = task.model_copy(update={"source": None, "metric": None, "filter": None})
    how = {"task": asked, "batch_size": job.evaluate.batch_size, "dtype": job.dtype, "arithmetic": arithmetic}
    files = {name: record.sha256 for name, record in model.manifest.files.items() if name.startswith("model/")}
    read = {"model": digest(files), "task": digest(definition), "harness": harness_version()}
    return fingerprint(SCORES, how, read)


def _read(context: Context, name: str) -> Figures | None:
    """What was published under this name; None where nothing was that can be taken."""
    artifact = context.sound(context.store.find(name))
    if artifact is None:
        return None
    try:
        return json.loads((context.store.use(artifact).path / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _publish(job: EvaluateJob, context: Context, key: str, task: TaskConfig, figures: Figures) -> None:
    with context.store.draft(SCORES, key) as draft:
        (draft.path / FILE).write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        # It names no inputs, because it outlives them: clean-up would keep them as long.
        told = {"task": task.to_json(), "model": job.model, "tasks": job.tasks, "step": job.step}
        draft.publish(config=told, inputs={}, result={})
