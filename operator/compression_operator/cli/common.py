"""What the commands share: exit codes, loading a manifest, where a run is."""

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from compression_operator.api.faults import Fault, InvalidManifest
from compression_operator.api.manifest import load
from compression_operator.api.rules import World, is_of_clusters
from compression_operator.api.run import SOURCES_ANNOTATION, TASK_SOURCES_ANNOTATION, CompressionRun
from compression_operator.core.student_faults import faults_by_student
from compression_operator.local.source_files import local_files, local_path, signature
from compression_operator.local.workdir import Workdir, WorkdirError
from compression_pipeline.config import Architecture, digest
from compression_pipeline.store.watched import Selection

if TYPE_CHECKING:
    from rich.console import Console


class Code(IntEnum):
    """Exit codes of the command."""

    SUCCEEDED = 0
    FAILED = 1
    INVALID = 2
    INTERRUPTED = 130


OUT = Path("out")
"""Where work directories are by default: one for each run, named like it."""

PLAIN_WIDTH = 140
"""Columns of a table that goes to a file."""


WIDE = 110
"""Columns from which on a table has room for all that it has to tell beside each other."""


def now() -> datetime:
    """The clock of the commands, in UTC."""
    return datetime.now(UTC)


def console() -> "Console":
    """Where results go: as wide as the terminal, or wide enough for the tables."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PLAIN_WIDTH)


def complain(*lines: object) -> None:
    """Say on stderr what is wrong, one line each."""
    for line in lines:
        print(line, file=sys.stderr)


def load_local(file: Path, overrides: Sequence[str]) -> CompressionRun:
    """The manifest as a local run takes it. Raises InvalidManifest, also where a local file isn't there."""
    run = load(file, World.LOCAL, overrides)
    faults = [
        Fault(str(file), field, _why_no_files(path))
        for field, source in (
            ("spec.teacher.model", run.spec.teacher.model),
            *((f"spec.{field}", source) for field, source in run.spec.text_sources().items()),
            *((f"spec.{field}", source) for field, source in run.spec.task_sources().items()),
        )
        if (path := local_path(source, source_root(file))) is not None
        and not any(local_files(source, source_root(file)))
    ]
    if faults:
        raise InvalidManifest(faults)
    return run


def load_run(file: Path, arguments: argparse.Namespace) -> CompressionRun:
    """The manifest as a cluster or this machine judges it (`--cluster`, `--set`). Raises InvalidManifest, which names
    --cluster where the manifest is for one.
    """
    if arguments.cluster:
        return load(file, World.CLUSTER, arguments.set)
    try:
        return load_local(file, arguments.set)
    except InvalidManifest as error:
        if not any(is_of_clusters(fault.message) for fault in error.faults):
            raise
        hint = Fault(str(file), "", "is for a cluster: add --cluster to judge it by the rules of clusters")
        raise InvalidManifest([*error.faults, hint]) from None


def faults_of_students(
    file: Path,
    run: CompressionRun,
    teacher: Architecture,
    searched: Mapping[str, Architecture] | None = None,
    *,
    gpus: int | None,
) -> Iterator[Fault]:
    """Why students cannot be made of this teacher. `searched` and `gpus`: see `faults_by_student`."""
    by_student = faults_by_student(run.spec, teacher, searched, gpus=gpus)
    found = [fault for faults in by_student.values() for fault in faults]
    for field, sentence in dict.fromkeys(found):  # what is wrong with spec.distill is so for several
        yield Fault(str(file), field, sentence)


def _why_no_files(path: Path) -> str:
    if path.is_dir():
        return f"{path} is empty"
    # The folder that a glob begins in may be there.
    found = Selection.at(path)
    return f"no file matches {path}" if found.patterns and found.base.is_dir() else f"{path} does not exist"


def source_root(file: Path) -> Path:
    """What the manifest's sources on this machine are relative to."""
    return file.absolute().parent


def digests_of_sources(run: CompressionRun, root: Path, workdir: Workdir) -> dict[str, str]:
    """By annotation: digests of the local files that the run's sources name; empty where teacher and dataset name none,
    as on a cluster.
    """

    def digested(sources: Iterable[str]) -> str:
        signatures = [signature(source, root, workdir.ours) for source in sources]
        return digest(signatures) if any(signatures) else ""

    tasks = digested(dict.fromkeys(run.spec.task_sources().values()))
    found = {SOURCES_ANNOTATION: digested((run.spec.teacher.model, *run.spec.text_sources().values()))}
    return found | ({TASK_SOURCES_ANNOTATION: tasks} if tasks else {})


def default_workdir(run: CompressionRun) -> Path:
    """`out/<name>`."""
    return OUT / run.metadata.name


def find_workdir(given: Path | None) -> tuple[Workdir, CompressionRun]:
    """The work directory that is meant, and its run. Raises WorkdirError where there is none, or several."""
    if given is None:
        found = sorted(file.parent for file in OUT.glob("*/run.yaml"))
        if len(found) != 1:
            several = f"out/ contains several runs; choose one with --workdir: {', '.join(str(path) for path in found)}"
            raise WorkdirError(several if found else "out/ contains no run; name its work directory with --workdir")
        given = found[0]
    workdir = Workdir(given)
    run = workdir.read()
    if run is None:
        raise WorkdirError(
            f"{given} contains no run; create one with `compression run FILE --workdir {shlex.quote(str(given))}`"
        )
    return workdir, run
