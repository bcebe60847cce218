"""What a student's own report is about: the artifacts that led to it, wherever they were made.

It names no run and no student: two runs may share one export, each by names of its own.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic.alias_generators import to_camel

from compression_pipeline.artifact import versions
from compression_pipeline.config import DEFAULT_ENGINE, PHASES, DatasetConfig, DistillJob, JobConfig, Phase, Precision

from .ancestry import Ancestry
from .data import Exported, Measured, RunData
from .phases.evaluate import unscored
from .reading import Reader
from .resource import Step, Student

NAME = "student"
API_VERSION = "modelcompression.io/v1alpha1"

NOTE = (
    "It holds what shaped this student. On a cluster it also needs spec.storage, and spec.phases where their defaults "
    "do not fit: storage and resources are a run's own, and no part of what it makes."
)


def load_student(ancestry: Ancestry, phase: Phase, job: JobConfig, exported: Exported) -> RunData:
    """The student that `job`, of this phase, hands out and has not yet published. The same artifacts give the same
    values.
    """
    reader = Reader()
    found = {phase: made.artifact for phase, made in ancestry.made.items()}
    for artifact in found.values():
        reader.saw(artifact.manifest.versions)
    reader.saw(versions())
    shared = reader.chain({phase: artifact for phase, artifact in found.items() if not PHASES[phase].per_student})
    own = reader.chain({phase: artifact for phase, artifact in found.items() if PHASES[phase].per_student})
    teacher = reader.teacher(shared, losses=[Measured(teacher=own.losses.taught_by)])
    steps = [_step(phase, artifact.manifest.config["fingerprint"], artifact.name) for phase, artifact in found.items()]
    steps.append(_step(phase, job.fingerprint, f"{phase}-{job.fingerprint}"))
    student = reader.student(
        own,
        exported,
        teacher=teacher,
        steps=[step for step in steps if PHASES[Phase(step.phase)].per_student],
        load="../model",
        figures=Student(name=NAME),
    )
    teacher, students = reader.comparable(teacher, [student])
    reader.gaps += unscored(ancestry)
    return RunData(
        name=NAME,
        title=ancestry.title,
        phase="Succeeded",
        start=None,
        end=found[Phase.DISTILL].manifest.created,
        message="",
        spec=spec_of(ancestry, job),
        teacher=teacher,
        students=students,
        steps=steps,
        versions=reader.versions,
        gaps=reader.gaps,
        place="this page's folder",
        manifest_note=NOTE,
        results=shared.results,
    )


def manifest_of(run: RunData) -> dict[str, Any]:
    """A manifest that makes the student again."""
    return {"apiVersion": API_VERSION, "kind": "CompressionRun", "metadata": {"name": run.name}, "spec": run.spec}


def spec_of(ancestry: Ancestry, job: JobConfig) -> dict[str, Any]:
    """The spec of a run of this student alone: what its jobs were told, defaults left out, Hub commits resolved.

    A job is told a part of the spec by the name that it has there; prune alone, what stands with the student.
    """
    prepare = ancestry.prepare
    jobs = [*(made.job for made in ancestry.made.values()), job]
    blocks = _scored_by(jobs) | {name: block for asked in jobs for name, block in _blocks(asked)}
    texts = blocks["dataset"].get("sources") or [blocks["dataset"]]
    told = [(blocks["teacher"], prepare.resolved_teacher), *zip(texts, prepare.resolved_texts, strict=True)]
    for block, resolved in told:
        if resolved.revision:
            block["revision"] = resolved.revision
    # Text that was tokenized once serves every length, and documents that see each other and that don't.
    taught = ancestry.distill[0]
    blocks["dataset"] = {
        **{name: value for name, value in blocks["dataset"].items() if name != "documentAttention"},
        "sequenceLength": taught.sequence_length,
        **_attention(taught),
    }
    student = {"name": NAME, "prune": blocks.pop("prune")}
    # A key of prune's counts on its device's arithmetic, which no setting says but whether it asks for a GPU.
    planned = ancestry.made[Phase.PRUNE].artifact.manifest.metrics.get("plannedPrecision")
    phases = {"prune": {"gpusPerNode": 0}} if planned == Precision.FP32 else {}
    engine = ancestry.distill[0].engine
    computed = {} if engine == DEFAULT_ENGINE else {"engine": engine}
    first = {name: blocks.pop(name) for name in ("teacher", "dataset", "finetune") if name in blocks}
    rest = {name: block for name, block in {**blocks, "phases": phases}.items() if block}
    return {**first, "students": [student], **computed, **rest}


def _attention(job: DistillJob) -> dict[str, str]:
    default = DatasetConfig.model_fields["document_attention"].default
    return {"documentAttention": job.document_attention.value} if job.document_attention is not default else {}


def _blocks(job: JobConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in job.blocks:
        yield to_camel(name), getattr(job, name).model_dump(mode="json", by_alias=True, exclude_defaults=True)


def _scored_by(jobs: Sequence[JobConfig]) -> dict[str, Any]:
    """The block evaluate with the tasks alone that jobs need which evaluate nothing: the last job's, and those that
    only others name."""
    asking = [told.scored_by for told in jobs if told.scored_by is not None]
    if not asking:
        return {}
    tasks = {task.name: task for scoring in asking for task in scoring.tasks}
    generation = next((scoring.generation for scoring in asking if scoring.generation is not None), None)
    whole = asking[-1].model_copy(update={"tasks": list(tasks.values()), "generation": generation})
    return {"evaluate": whole.model_dump(mode="json", by_alias=True, exclude_defaults=True)}


def _step(phase: Phase, fingerprint: str, artifact: str) -> Step:
    """A step that succeeded; when, and at which attempt, is the business of the run that it was a part of."""
    return Step(
        name=phase.value,
        phase=phase.value,
        state="Succeeded",
        attempt=1,
        artifact=artifact,
        fingerprint=fingerprint,
    )
