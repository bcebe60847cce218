"""Commands that look and change nothing: validate, render, status (and `plan.py`)."""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compression_operator.api.faults import Fault, InvalidManifest
from compression_operator.api.manifest import load
from compression_operator.api.rules import World
from compression_operator.api.run import CompressionRun
from compression_operator.api.status import RunPhase
from compression_operator.core.jobs import MOUNTED_CLAIMS
from compression_operator.core.plan import Plan, maker_of, plan
from compression_operator.local import machine
from compression_operator.local.workdir import to_yaml
from compression_pipeline.sizing.teacher import TeacherRefused, TeacherUnknown, find_teacher

from .common import Code, console, faults_of_students, find_workdir, load_run, now, source_root
from .invocation import resume_command
from .plan import unknown as unknown_in
from .summary import failures, print_students
from .view import step_seconds, step_word

if TYPE_CHECKING:
    from compression_operator.backends.pods.platform_defaults import JobDefaults

PLACEHOLDER = "0" * 32
"""Stands for a fingerprint that isn't known yet in what `render` prints."""


def validate(arguments: argparse.Namespace) -> int:
    """Say whether each manifest can be run, of its teacher too where that lies on this machine. Raises InvalidManifest
    with the faults of all of them.
    """
    faults: list[Fault] = []
    for file in arguments.files:
        try:
            run = load_run(file, arguments)
        except InvalidManifest as error:
            faults += error.faults
            continue
        of_teacher = list(_faults_of_teacher(file, run, cluster=arguments.cluster))
        if not of_teacher:
            print(f"{file}: {run.metadata.name} is valid")
        faults += of_teacher
    if faults:
        raise InvalidManifest(faults)
    return Code.SUCCEEDED


def _faults_of_teacher(file: Path, run: CompressionRun, *, cluster: bool) -> Iterator[Fault]:
    """What `compression plan` says of the teacher and of students that cannot be made of it; nothing of a teacher that
    only the network has.
    """
    try:
        teacher = find_teacher(
            run.spec.teacher.model,
            run.spec.teacher.revision,
            root=source_root(file),
            mounted=Path(MOUNTED_CLAIMS),
            offline=True,
            environment={},
        )
    except TeacherUnknown:
        return
    except TeacherRefused as refused:
        yield Fault(str(file), "spec.teacher.model", str(refused))
        return
    gpus = None if cluster else len(machine.visible_gpus(os.environ))
    yield from faults_of_students(file, run, teacher.architecture, gpus=gpus)


def render(arguments: argparse.Namespace) -> int:
    """Print the jobs that a cluster would get for the first attempt at each step. Raises InvalidManifest."""
    from compression_operator.backends.kinds import kind_of

    run = load(arguments.file, World.CLUSTER, arguments.set)
    image = run.spec.job_template.image or arguments.image
    defaults = _job_defaults(arguments.jobs)
    planned = plan(run.spec, maker=maker_of(run))
    whole = with_placeholders(planned)
    unknown = [step.name for step in planned.steps if step.fingerprint is None]
    kind = kind_of(run)
    print(f"# {kind.name}s of run {run.metadata.name} as a cluster gets them, one after the other.")
    if unknown:
        print(f"# {PLACEHOLDER} stands for what is {unknown_in(whole)}: {', '.join(unknown)}.")
    print("# The owner's uid is the one that the API server gives the run.")
    owner = run.metadata.model_copy(update={"uid": run.metadata.uid or "<uid>"})
    for step in whole.steps:
        job = whole.job(step, run=run.metadata.name, attempt=1)
        manifest = kind.build(run.model_copy(update={"metadata": owner}), job, image, defaults)
        print(f"---\n{to_yaml(manifest)}", end="")
    return Code.SUCCEEDED


def _job_defaults(file: Path | None) -> "JobDefaults":
    """What a platform gives to every job, of a file. Raises InvalidManifest."""
    from compression_operator.backends.pods.platform_defaults import PLAIN, job_defaults

    try:
        return PLAIN if file is None else job_defaults(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, argparse.ArgumentTypeError) as error:
        raise InvalidManifest([Fault(str(file), "", str(error))]) from error


def with_placeholders(planned: Plan) -> Plan:
    """The plan with `PLACEHOLDER` where a fingerprint, or the key of an artifact, is not known."""
    return Plan(
        tuple(
            replace(
                step,
                fingerprint=step.fingerprint or PLACEHOLDER,
                artifact=step.artifact or f"{step.phase}-{PLACEHOLDER}",
            )
            for step in planned.steps
        )
    )


def status(arguments: argparse.Namespace) -> int:
    """Print the run of a work directory. Raises WorkdirError."""
    workdir, run = find_workdir(arguments.workdir)
    if arguments.output is not None:
        print(_dump(run.to_json(), arguments.output), end="")
        return Code.SUCCEEDED
    from rich.table import Table
    from rich.text import Text

    out = console()
    resting = run.status.phase in (RunPhase.SUCCEEDED, RunPhase.FAILED)
    idle = not resting and not workdir.in_use
    hint = f" (nothing is running; continue with: {resume_command(workdir)})" if idle else ""
    out.print(Text(f"{run.metadata.name}: {run.status.phase}{hint}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("step", "state", "failures", "seconds", "progress", "message"):
        table.add_column(heading, overflow="fold")
    for step in run.status.steps:
        stopped = idle and step.state.active  # its command is gone, and wrote no more
        seconds, progress = None if stopped else step_seconds(step, now()), step.progress
        table.add_row(
            step.name,
            "stopped" if stopped else step_word(step, step.cached),
            str(step.failures or ""),
            "" if seconds is None else f"{seconds:.0f}",
            "" if progress is None else f"{progress.step}/{progress.total_steps}",
            Text(step.message),
        )
    out.print(table)
    if any(student.parameters is not None for student in run.status.students):
        print_students(out, run)
    for line in failures(workdir, run):
        out.print(Text(line), soft_wrap=True)
    return Code.SUCCEEDED


def _dump(value: Any, form: str) -> str:
    return json.dumps(value, indent=2) + "\n" if form == "json" else to_yaml(value)
