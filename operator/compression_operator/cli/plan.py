"""`compression plan`: the steps of a run, and what it will need."""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compression_operator.api.documents import MalformedYaml, read_documents
from compression_operator.api.faults import Fault, InvalidManifest
from compression_operator.api.phase_settings import MOST_GPUS
from compression_operator.api.planned import PlannedTraining
from compression_operator.api.resolved import Resolved
from compression_operator.api.run import CompressionRun
from compression_operator.core.jobs import MOUNTED_CLAIMS
from compression_operator.core.plan import Plan, PlannedStep, discovered_in, maker_of, plan
from compression_operator.core.room import chosen
from compression_operator.core.searches import NOTHING_FOUND, PlannedSearch, found_by_searches, searches
from compression_operator.core.sizes import Hardware, Sizes, run_sizes
from compression_operator.local import machine
from compression_operator.local.workdir import Workdir, to_yaml
from compression_pipeline.config import PHASES, Architecture, Record, human_bytes, quantity_bytes
from compression_pipeline.sizing import GPUS, find_gpu
from compression_pipeline.sizing.teacher import (
    FoundTeacher,
    TeacherRefused,
    TeacherUnknown,
    find_teacher,
    teacher_of_file,
)

from .common import (
    Code,
    complain,
    console,
    default_workdir,
    digests_of_sources,
    faults_of_students,
    load_run,
    source_root,
)
from .passes import passes_in_words, passes_to_json
from .searches import print_searches, to_json
from .tables import hours_in_words, print_table
from .teacher_logits import logits_in_words, logits_to_json


def show_plan(arguments: argparse.Namespace) -> int:
    """Print the steps in their order, and what they need. Raises InvalidManifest and WorkdirError.

    What can't be known of the teacher is said on stderr, and is no failure; a teacher or a student that can't be is.
    """
    run = load_run(arguments.file, arguments)
    hardware = _hardware(arguments)
    workdir = arguments.workdir or default_workdir(run)
    stored = None if arguments.cluster else Workdir(workdir).read()
    resolved: Resolved | None = None
    if arguments.cluster:
        planned = plan(run.spec, maker=maker_of(run))
    else:
        planned, resolved = _planned(run, arguments.file, workdir, stored, gpus=hardware.gpus != 0)
    report: dict[str, Any] = {"run": run.metadata.name, "steps": [_step_json(step) for step in planned.steps]}
    report["passes"] = passes_to_json(run.spec, resolved)
    report["logits"] = logits_to_json(planned)
    if arguments.output is None:
        _print_steps(planned)
        for line in (*passes_in_words(run.spec, resolved), *logits_in_words(planned)):
            print(line)
    found, fault = _teacher(run, arguments, stored)
    faults = [Fault(str(arguments.file), "spec.teacher.model", fault)] if fault else []
    if found is not None:
        done = found_by_searches(stored.status, planned) if stored is not None else NOTHING_FOUND
        shapes = {name: chosen(candidates, found.architecture) for name, candidates in done.items()}
        faults += faults_of_students(arguments.file, run, found.architecture, shapes, gpus=hardware.gpus)
        sizes = run_sizes(run.spec, planned, found.architecture, hardware, shapes)
        searched = searches(run.spec, planned, found.architecture, hardware, done, dtype=found.dtype)
        warnings = [*_warnings(sizes, searched), *_room(run, arguments, workdir, sizes.peak)]
        report |= {**_json(found, sizes, hardware, warnings), "searches": to_json(searched)}
        if arguments.output is None:
            _print_sizes(found, sizes, hardware)
            print_searches(searched, hardware)
            for warning in warnings:
                print(f"warning: {warning}")
    if arguments.output is not None:
        print(json.dumps(report, indent=2) if arguments.output == "json" else to_yaml(report).rstrip("\n"))
    if faults:
        raise InvalidManifest(faults)
    return Code.SUCCEEDED


def _hardware(arguments: argparse.Namespace) -> Hardware:
    """What is told of it. Raises InvalidManifest for a GPU that isn't known."""
    here = len(machine.visible_gpus(os.environ))
    if arguments.gpu is not None and not here:
        here = MOST_GPUS  # a machine that has as many as the manifest asks for
    gpus = None if arguments.cluster else here
    if arguments.gpu is None:
        return Hardware(gpus=gpus, mfu=arguments.mfu)
    gpu = find_gpu(arguments.gpu)
    if gpu is None:
        raise InvalidManifest([Fault("--gpu", "", f"{arguments.gpu} is not known; give one of {', '.join(GPUS)}")])
    return Hardware(gpus=gpus, gpu=gpu, mfu=arguments.mfu)


def _teacher(
    run: CompressionRun, arguments: argparse.Namespace, stored: CompressionRun | None
) -> tuple[FoundTeacher | None, str | None]:
    """The teacher, as far as it can be known; and why it can't be compressed. `stored`: the work directory's run."""
    teacher = run.spec.teacher
    try:
        if arguments.teacher_config is not None:
            return teacher_of_file(arguments.teacher_config), None
        if stored is not None and stored.status.teacher is not None and stored.spec.teacher == teacher:
            resolved = stored.status.resolved
            revision = resolved.teacher.revision if resolved is not None else None
            sizes = Architecture.model_validate(stored.status.teacher.model_dump())  # without its figures
            return FoundTeacher(sizes, f"{teacher.model}, as prepare found it", revision), None
        return find_teacher(
            teacher.model,
            teacher.revision,
            root=source_root(arguments.file),
            mounted=Path(MOUNTED_CLAIMS),
            offline=arguments.offline,
            environment=os.environ,
        ), None
    except TeacherUnknown as unknown:
        complain(f"sizes are not known: {unknown}")
        return None, None
    except TeacherRefused as refused:
        return None, str(refused)


def _warnings(sizes: Sizes, searched: Mapping[str, PlannedSearch]) -> Iterator[str]:
    for one in (*searched.values(), *sizes.trainings.values()):
        yield from one.warnings


def _room(run: CompressionRun, arguments: argparse.Namespace, workdir: Path, needed: int) -> Iterator[str]:
    """A warning where the store is too small: the claim as the manifest's file makes it, or this machine's disk."""
    storage = run.spec.storage
    if storage is not None and arguments.cluster:
        name = storage.persistent_volume_claim.claim_name
        size = _claim(arguments.file, name)
        if size is not None and size < needed:
            yield (
                f"claim {name} has {human_bytes(size)} and the store needs about {human_bytes(needed)}, text not "
                "counted; ask for more storage"
            )
    elif not arguments.cluster:
        folder = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.is_dir())
        free = shutil.disk_usage(folder).free
        if free < needed:
            yield (
                f"{folder} has {human_bytes(free)} free and the store needs about {human_bytes(needed)}, text not "
                "counted; free some space, or use another --workdir"
            )


def _claim(file: Path, name: str) -> int | None:
    """Bytes of the claim of this name, if the file has it."""
    try:
        documents = read_documents(file.read_text(encoding="utf-8"))
    except (OSError, MalformedYaml):
        return None
    for one in documents:
        match one:
            case {
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": found},
                "spec": {"resources": {"requests": {"storage": str() | int() as size}}},
            } if found == name:
                return quantity_bytes(size)
            case _:
                pass
    return None


def _planned(
    run: CompressionRun, file: Path, workdir: Path, stored: CompressionRun | None, *, gpus: bool
) -> tuple[Plan, Resolved | None]:
    """The plan, with what the work directory knows of the sources where they are still the same; and the latter."""
    sources = digests_of_sources(run, source_root(file), Workdir(workdir))
    about = run if stored is None else run.model_copy(update={"metadata": stored.metadata})
    maker = maker_of(about)
    planned = plan(run.spec, sources=sources, gpus=gpus, maker=maker)
    if stored is None:
        return planned, None
    known, still = discovered_in(stored.status), dict[str, Record]()
    for name, found in known.items():
        step, done = planned.get(name), stored.status.step(name)
        if step is not None and done is not None and step.fingerprint == done.fingerprint:
            still[name] = found
            planned = plan(run.spec, discovered=still, sources=sources, gpus=gpus, maker=maker)
    return planned, stored.status.resolved if stored.status.resolved in still.values() else None


def unknown(planned: Plan) -> str:
    """What is said of a fingerprint that rests on what the sources hold."""
    first = [step.name for step in planned.steps if PHASES[step.phase].reads_sources]
    return f"unknown until {' and '.join(first)} {'has' if len(first) == 1 else 'have'} run"


def _step_json(step: PlannedStep) -> dict[str, Any]:
    return {
        "name": step.name,
        "phase": step.phase.value,
        "student": step.student,
        "after": list(step.predecessors),
        "fingerprint": step.fingerprint,
        "artifact": step.artifact,
    }


def _json(found: FoundTeacher, sizes: Sizes, hardware: Hardware, warnings: Sequence[str]) -> dict[str, Any]:
    teacher = found.architecture.parameters
    return {
        "teacher": {
            "source": found.where,
            "revision": found.revision,
            "parameters": teacher,
            "shape": found.architecture.to_json(),
        },
        "students": [
            {
                "name": name,
                "parameters": shape.parameters,
                "compressionRatio": shape.parameters / teacher,
                "shape": shape.to_json(),
            }
            for name, shape in sizes.shapes.items()
        ],
        "trainings": {name: training.to_json() for name, training in sizes.trainings.items()},
        "store": {
            "peakBytes": sizes.peak,
            "steps": {name: {"artifact": kept, "checkpoints": more} for name, (kept, more) in sizes.store.items()},
        },
        "gpu": hardware.gpu.name if hardware.gpu else None,
        "modelFlopsUtilization": hardware.mfu,
        "warnings": list(warnings),
    }


def _print_steps(planned: Plan) -> None:
    rows = [[step.name, ", ".join(step.predecessors), step.fingerprint or unknown(planned)] for step in planned.steps]
    print_table(console(), ("step", "after", "fingerprint"), rows, words=3)


def _print_sizes(found: FoundTeacher, sizes: Sizes, hardware: Hardware) -> None:
    out, teacher = console(), found.architecture
    print(f"\nteacher: {found.where}")
    shapes: Mapping[str, Architecture] = {"(teacher)": teacher, **sizes.shapes}
    rows = [
        [name, *(f"{size:,}" for size in _dimensions(one)), f"{one.parameters / teacher.parameters:.1%}"]
        for name, one in shapes.items()
    ]
    print_table(out, ("model", "layers", "hidden", "FFN", "heads", "KV heads", "parameters", "ratio"), rows)
    print("\nper GPU (of one rank if a phase runs on CPU):")
    rows = [[name, _ranks(one), *_memory(one)] for name, one in sizes.trainings.items()]
    memory = ("weights", "gradients", "optimizer", "teacher", "activations", "logits", "scoring", "sum")
    headings = ("step", "ranks", *memory, "recomputes")
    print_table(out, headings, rows)
    print()
    rows = [
        [
            name,
            f"{one.tokens:,}",
            f"{one.flops:.3g}",
            one.gpu or "-",
            hours_in_words(one.gpu_hours),
            human_bytes(one.store_bytes),
        ]
        for name, one in sizes.trainings.items()
    ]
    hours = f"GPU hours at {hardware.mfu:.0%}"
    print_table(out, ("step", "tokens", "FLOPs", "GPU", hours, "its store"), rows)
    print(f"the store needs about {human_bytes(sizes.peak)} at most, text not counted")


def _dimensions(one: Architecture) -> tuple[int, ...]:
    heads = (one.attention_heads, one.query_groups)
    return one.layers, one.hidden_size, one.ffn_hidden_size, *heads, one.parameters


def _ranks(one: PlannedTraining) -> str:
    split = [f"{name} {size}" for name, size in (("tensor", one.tensor), ("pipeline", one.pipeline)) if size > 1]
    return f"{one.ranks} ({', '.join(split)})" if split else f"{one.ranks}"


def _memory(one: PlannedTraining) -> Iterator[str]:
    of = one.memory_per_gpu
    for size in (of.weights, of.gradients, of.optimizer, of.teacher, of.activations, of.logits, of.scoring, of.total):
        yield human_bytes(size)
    yield one.recomputation.words
