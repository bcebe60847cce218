"""`compression run`: the recipe from a manifest to students, on this machine."""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compression_operator.api.faults import Fault, InvalidManifest
from compression_operator.api.run import CompressionRun
from compression_operator.api.status import RunPhase, Step, StepState
from compression_operator.core.plan import discovered_in, plan_of
from compression_operator.core.reconcile import reconcile
from compression_operator.joblog.lines import duration
from compression_operator.local import machine
from compression_operator.local.backend import COMMAND, Place
from compression_operator.local.jobfiles import JobFolder
from compression_operator.local.runs import forget, forget_unseen_failures, submit
from compression_operator.local.store_probe import is_whole
from compression_operator.local.workdir import Workdir, told_of
from compression_pipeline.config import PHASES, Phase, Precision
from compression_pipeline.store.system import processors

from . import summary
from .common import Code, complain, console, default_workdir, digests_of_sources, load_local, now, source_root
from .invocation import Invocation
from .output import ignore_closed_pipe
from .report import build_report
from .session import INTERRUPTED, Session
from .view import Cached, LiveView, PlainView, Resumed, View

if TYPE_CHECKING:
    from rich.console import Console


def run(arguments: argparse.Namespace) -> int:
    """Run the manifest to its end, whoever still listens; see Code for what is returned.

    Raises InvalidManifest and WorkdirError.
    """
    with ignore_closed_pipe():
        return _submit(arguments)


def _submit(arguments: argparse.Namespace) -> int:
    file: Path = arguments.file
    manifest = load_local(file, arguments.set)
    gpus = machine.visible_gpus(os.environ)
    if faults := list(_without_gpu(manifest, file, gpus)):
        raise InvalidManifest(faults)
    root = source_root(file)
    workdir = Workdir(arguments.workdir or default_workdir(manifest))
    workdir.check_not_overwritten(file)
    with workdir.locked():
        workdir.make(arguments.store)
        invocation = Invocation.of(arguments)
        moment = now()
        submitted = submit(
            workdir,
            manifest,
            sources=digests_of_sources(manifest, root, workdir),
            gpus=len(gpus),
            now=moment,
            uid=str(uuid.uuid4()),
            retry=moment.isoformat(),
        )
        submitted = forget(workdir, submitted, missing_steps(workdir, submitted))
        forget_unseen_failures(workdir, submitted)
        with contextlib.suppress(OSError):  # for the hint of `compression status` alone
            invocation.write(workdir)
        place = Place(
            jobs=workdir.jobs,
            store=workdir.store.absolute(),
            source_root=root,
            aside=workdir.ours,
            environment=os.environ,
            processors=processors(),
            gpus=gpus,
            command=arguments.job_command or COMMAND,
        )
        return _run(workdir, submitted, place, invocation.resume_command(workdir))


def _without_gpu(run: CompressionRun, file: Path, gpus: Sequence[str]) -> Iterator[Fault]:
    """What needs a GPU and would get none: the engine refuses it too, but only after prepare and prune."""
    for path, training in run.spec.trainings().items():
        phases = path.rpartition(".")[2], *training.computes_also_in
        wanted = {phase: run.spec.phases.of(phase).gpus_per_node for phase in phases}
        without = [phase for phase, count in wanted.items() if not (gpus and count)]
        if training.precision is Precision.BF16 and without:
            why = f"spec.phases.{without[0]}.gpusPerNode is 0" if gpus else "none was found on this machine"
            yield Fault(str(file), f"spec.{path}.precision", f"BF16 needs a GPU and {why}; set Auto or FP32")


def missing_steps(workdir: Workdir, run: CompressionRun) -> list[str]:
    """Finished steps that must run again, because what they made is gone from the store, or damaged, and still needed.

    What a run is made for (exports) is needed; of the others, those that a step reads which is not finished. The rest
    may be gone. Files are compared by their sizes only, which costs nothing. What is damaged is set aside by the step
    that makes it again.
    """
    states = {step.name: step for step in run.status.steps}
    same = run.status.observed_generation == run.metadata.generation
    kept = {step.name: step.fingerprint for step in states.values() if same and step.fingerprint}
    planned = plan_of(run, discovered=discovered_in(run.status), kept=kept)
    wanted: set[str] = set()  # steps that will run
    missing: list[str] = []
    for step in reversed(planned.steps):
        known = states.get(step.name)
        finished = known is not None and known.state is StepState.SUCCEEDED and known.fingerprint == step.fingerprint
        if not finished:
            wanted.add(step.name)
            continue
        needed = PHASES[step.phase].delivers or any(
            step.name in other.dependencies for other in planned.steps if other.name in wanted
        )
        artifact = known.artifact if known else None
        if needed and (artifact is None or not is_whole(workdir.store, artifact)):
            wanted.add(step.name)
            missing.append(step.name)
    return missing


def _run(workdir: Workdir, run: CompressionRun, place: Place, again: str) -> int:
    began = now()
    out = console()
    cached = _cached_before(run)
    view = _view(out, cached, _resumed_after(workdir, run))
    for line in _remarks(run, place):
        view.print_line(line)
    session = Session(workdir, run, place, view, reconcile=reconcile, now=now)
    try:
        code = asyncio.run(session.run())
    except OSError as error:  # the work directory can't be written any more; every job has ended
        why = told_of(error, workdir.root)
        complain(f"gave up: {why}; once the cause is fixed, resume from the last checkpoint with: {again}")
        return Code.FAILED
    finally:
        view.close()
    ended = session.run_now
    _finish(workdir, ended, out)
    if code == INTERRUPTED:
        complain(f"interrupted; resume from the last checkpoint with: {again}")
    elif ended.status.phase is RunPhase.SUSPENDED:
        complain("suspended; set spec.suspend to false and run again")
    elif code == Code.FAILED:
        complain(*summary.failures(workdir, ended), f"once the cause is fixed, try again with: {again}")
    else:
        out.print(f"succeeded in {duration((now() - began).total_seconds())}", style="bold green")
    return code


def _finish(workdir: Workdir, run: CompressionRun, out: "Console") -> None:
    """What a run leaves to look at, as far as it came: the table, the links, the report. Links and a report that are
    there already tell of the run as it was before an edit, so they follow it also where it has failed.
    """
    if any(student.parameters is not None for student in run.status.students):
        summary.print_students(out, run)
    try:
        links = summary.link_students(workdir, run)
        for name, path in links.items():
            out.print(f"checkpoint of {name}: {path}", soft_wrap=True)
        if links or workdir.report.exists():
            out.print(f"report: {build_report(workdir)}", soft_wrap=True)
    except OSError as error:
        complain(f"the students could not be linked: {error}")
    except subprocess.CalledProcessError as error:
        complain(f"the report could not be built: {error.stderr.strip().rpartition(chr(10))[2]}")


def _cached_before(run: CompressionRun) -> Cached:
    """Steps count as cached that were finished before this command began, or found their artifact published."""
    before = {(step.name, step.fingerprint) for step in run.status.steps if step.state is StepState.SUCCEEDED}

    def cached(step: Step) -> bool:
        return step.cached or (step.name, step.fingerprint) in before

    return cached


def _resumed_after(workdir: Workdir, run: CompressionRun) -> Resumed:
    """Steps are resumed that have had a job with their present fingerprint, and neither succeeded nor failed."""
    begun: set[tuple[str, str | None]] = set()
    for step in run.status.steps:
        record = JobFolder(workdir.jobs / step.job_name).record() if step.job_name else None
        if not step.state.final and record is not None and record.fingerprint == step.fingerprint:
            begun.add((step.name, step.fingerprint))

    def resumed(step: Step) -> bool:
        return (step.name, step.fingerprint) in begun

    return resumed


def _view(out: "Console", cached: Cached, resumed: Resumed) -> View:
    if out.is_terminal and not out.is_dumb_terminal:
        return LiveView(out, now=now, cached=cached, resumed=resumed)
    return PlainView(sys.stdout, now=now, cached=cached, resumed=resumed)


def _remarks(run: CompressionRun, place: Place) -> Iterator[str]:
    """What the manifest asks for that one machine does otherwise."""
    for phase in Phase:
        nodes = run.spec.phases.of(phase).nodes
        if nodes > 1:
            yield f"spec.phases.{phase}.nodes: {nodes} is for clusters; a local run has one node"
    if not place.gpus:
        yield f"no GPU found: running on {place.processors} processors"
