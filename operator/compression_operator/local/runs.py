"""Local runs: one work directory per run, its resource in `run.yaml`."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from compression_operator.api.run import (
    CPU,
    DEVICES_ANNOTATION,
    GPU,
    GPUS_ANNOTATION,
    RETRY_ANNOTATION,
    CompressionRun,
    ObjectMeta,
)
from compression_operator.api.status import CompressionRunStatus, RunPhase, StepState
from compression_operator.core.controller import Conflict
from compression_operator.core.plan import forget_discoveries
from compression_pipeline.config import ExitClass

from .jobfiles import JobFolder, JobRecord
from .workdir import Workdir, WorkdirError, unwritable


class LocalRuns:
    """The one run of a work directory, as the controller wants it. Use it while holding the directory's lock."""

    def __init__(self, workdir: Workdir, run: CompressionRun) -> None:
        self._workdir = workdir
        self._run = run
        self.suspended = False  # set when the command is told to stop: everything ends at a checkpoint

    @property
    def run(self) -> CompressionRun:
        """The run as it is stored."""
        return self._run

    async def keys(self) -> list[str]:
        """The one key."""
        return [self._run.metadata.key]

    async def get(self, key: str) -> CompressionRun | None:
        """The run; asked to stop where the command was."""
        if key != self._run.metadata.key:
            return None
        if not self.suspended:
            return self._run
        return self._run.model_copy(update={"spec": self._run.spec.model_copy(update={"suspend": True})})

    async def write_status(self, run: CompressionRun, status: CompressionRunStatus) -> CompressionRun:
        """Store the status. Raises Conflict where the run was written since it was read, OSError where it can't be."""
        if run.metadata.resource_version != self._run.metadata.resource_version:
            raise Conflict(run.metadata.key)
        stored = _written(self._run, status=status)
        self._workdir.write(stored)
        self._run = stored
        return stored


def submit(
    workdir: Workdir,
    manifest: CompressionRun,
    *,
    sources: Mapping[str, str],
    gpus: int,
    now: datetime,
    uid: str,
    retry: str,
) -> CompressionRun:
    """Apply a manifest to the directory, as `kubectl apply` would; returns the run as stored.

    `sources` has by annotation digests of the local files that it names, `gpus` is how many this machine has. A
    changed spec, changed files or another kind of machine raise the generation. What failed before is tried again
    (`retry` becomes the retry annotation's value). Nothing is written where nothing changed. Raises WorkdirError where
    the directory belongs to another run, or cannot be written.
    """
    found = {**sources, DEVICES_ANNOTATION: GPU if gpus else CPU, GPUS_ANNOTATION: str(gpus)}
    stored = workdir.read()
    if stored is None:
        metadata = manifest.metadata.model_copy(
            update={
                "uid": uid,
                "generation": 1,
                "resource_version": "1",
                "creation_timestamp": now,
                "annotations": {**manifest.metadata.annotations, **found},
            }
        )
        run = CompressionRun(metadata=metadata, spec=manifest.spec)
    else:
        run = _applied(workdir, stored, manifest, found, retry)
    if run != stored:
        try:
            if stored is None:
                # Jobs of a run that is known no more: their names may come again.
                workdir.forget_jobs(lambda record: True)
            workdir.write(run)
        except OSError as error:
            raise WorkdirError(unwritable(error, workdir.root)) from error
    return run


def forget(workdir: Workdir, run: CompressionRun, steps: Collection[str]) -> CompressionRun:
    """Let these finished steps run again, since what they made is gone; returns the run as stored.

    Their jobs are forgotten too (their logs stay), and the generation rises, as a finished run is planned again only
    then. Raises WorkdirError where nothing can be written.
    """
    if not steps:
        return run
    status = forget_discoveries(run.status, steps)
    status = status.model_copy(update={"steps": [step for step in status.steps if step.name not in steps]})
    metadata = run.metadata.model_copy(update={"generation": run.metadata.generation + 1})
    forgotten = _written(run, metadata=metadata, status=status)
    try:
        workdir.forget_jobs(lambda record: record.step in steps)
        workdir.write(forgotten)
    except OSError as error:
        raise WorkdirError(unwritable(error, workdir.root)) from error
    return forgotten


def forget_unseen_failures(workdir: Workdir, run: CompressionRun) -> None:
    """Let steps run again whose job failed for good when nobody could record it, e.g. on a full disk.

    Who runs the manifest again has mended the cause, as after a failure that was recorded. Their logs stay. Raises
    WorkdirError where nothing can be written.
    """
    unfinished = {step.name for step in run.status.steps if step.state.active or step.state is StepState.PENDING}

    def failed_unseen(record: JobRecord) -> bool:
        said = JobFolder(workdir.jobs / record.name).termination()
        return record.step in unfinished and said is not None and said.exit_class is ExitClass.USER_ERROR

    try:
        workdir.forget_jobs(failed_unseen)
    except OSError as error:
        raise WorkdirError(unwritable(error, workdir.root)) from error


def _applied(
    workdir: Workdir, stored: CompressionRun, manifest: CompressionRun, found: Mapping[str, str], retry: str
) -> CompressionRun:
    if stored.metadata.key != manifest.metadata.key:
        raise WorkdirError(
            f"{workdir.root} belongs to run {stored.metadata.name}, the manifest is of {manifest.metadata.name}; "
            "use another --workdir"
        )
    kept = {k: v for k, v in stored.metadata.annotations.items() if k == RETRY_ANNOTATION}
    annotations = {**kept, **manifest.metadata.annotations, **found}
    noted = stored.metadata.annotations  # one that an older version did not note has not changed
    found_changed = any(noted.get(name, new) != new for name, new in found.items() if name != GPUS_ANNOTATION)
    edited = stored.spec != manifest.spec or found_changed
    if stored.status.phase is RunPhase.FAILED and not edited:
        annotations[RETRY_ANNOTATION] = retry
    changes: dict[str, Any] = {"annotations": annotations, "labels": manifest.metadata.labels}
    if edited:
        changes["generation"] = stored.metadata.generation + 1
    metadata = stored.metadata.model_copy(update=changes)
    if metadata == stored.metadata and not edited:
        return stored
    return _written(stored, metadata=metadata, spec=manifest.spec)


def _written(run: CompressionRun, **changes: Any) -> CompressionRun:
    """`run` with changes and the next resourceVersion."""
    metadata: ObjectMeta = changes.pop("metadata", run.metadata)
    version = str(int(run.metadata.resource_version or "0") + 1)
    return run.model_copy(update={"metadata": metadata.model_copy(update={"resource_version": version}), **changes})
