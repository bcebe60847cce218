"""tasks: fetch the tasks that models are scored by, before any GPU is asked for.

The artifact: `definitions.json` and `data/`, see `tasks.fetching`. Its key comes from their content and from lm-eval's
version.
"""

import shutil

from compression_pipeline.config import TasksJob, TasksResult
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError
from compression_pipeline.sources import open_source
from compression_pipeline.sources.local import LocalSource
from compression_pipeline.store.published import Published
from compression_pipeline.tasks.fetching import DATA, DEFINITIONS, Fetched, write_definitions
from compression_pipeline.tasks.harness import harness_version


def run(job: TasksJob, context: Context) -> TasksResult:
    """Make the artifact, or find that there is one of the same content. Raises PhaseError."""
    folder = context.folder / "tasks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fetched = Fetched(folder)
    sources: dict[str, LocalSource] = {}
    for index, task in enumerate(job.evaluate.tasks):
        where = f"evaluate.tasks[{index}]"
        context.events.progress(index, len(job.evaluate.tasks), unit="tasks", doing=f"fetch {task.name}")
        context.stop_if_requested()
        if task.source is None:
            fetched.shipped(task, where)
            continue
        if task.source not in sources:
            source = open_source(task.source, field=f"{where}.source", revision=None, job=job, context=context)
            if not isinstance(source, LocalSource):
                raise UserError(f"{where}.source: {task.source} is no folder")
            sources[task.source] = source
        fetched.own(task, sources[task.source], where)
    write_definitions(fetched)
    key = fetched.key
    artifact = context.sound(context.store.find(f"tasks-{key}"))
    cached = artifact is not None
    if artifact is None:
        with context.store.draft("tasks", key) as draft:
            for name in (DEFINITIONS, DATA):
                shutil.move(folder / name, draft.path / name)
            result = TasksResult(key=key, harness=harness_version(), digests=fetched.digests)
            artifact = draft.publish(
                config=job.to_json(),
                inputs={task.name: task.source or "lm-eval" for task in job.evaluate.tasks},
                result=result.to_json(),
            )
    told = {"cached": cached, "digests": fetched.digests}  # which an artifact of an older version doesn't tell
    found = context.store.use(artifact).result(TasksResult).model_copy(update=told)
    watched = [source.watched() for source in sources.values()]
    published = Published(artifact=artifact.name, watched=[one for one in watched if one])
    context.store.record_published(job.fingerprint, published)
    shutil.rmtree(folder, ignore_errors=True)
    return found
