"""What a student's own report is about: the artifacts that led to it, wherever they were made.

It names no run and no student: two runs may share one export, each by names of its own.
"""

from typing import Any

from compression_pipeline.ancestry import Ancestry
from compression_pipeline.artifact import versions
from compression_pipeline.config import ConfigModel, ExportJob, Phase, Precision

from .data import Exported, RunData, StepData
from .reading import Reader

NAME = "student"
API_VERSION = "modelcompression.io/v1alpha1"

NOTE = (
    "It holds what shaped this student. On a cluster it also needs spec.storage, and spec.phases where their defaults "
    "do not fit: storage and resources are a run's own, and no part of what it makes."
)


def load_student(ancestry: Ancestry, job: ExportJob, exported: Exported) -> RunData:
    """The student that `job` has exported but not yet published. The same artifacts give the same values."""
    reader = Reader()
    for artifact in ancestry.artifacts.values():
        reader.saw(artifact.manifest.versions)
    reader.saw(versions())
    found = ancestry.artifacts
    result = ancestry.distill[1]
    teacher = reader.teacher(found[Phase.PREPARE], found.get(Phase.FINETUNE), losses=[{"teacher": result.teacher_loss}])
    steps = [_step(phase, artifact.manifest.config["fingerprint"], artifact.name) for phase, artifact in found.items()]
    steps.append(_step(Phase.EXPORT, job.fingerprint, f"{Phase.EXPORT}-{job.fingerprint}"))
    student = reader.student(
        NAME,
        found[Phase.PRUNE],
        found[Phase.DISTILL],
        exported,
        teacher=teacher,
        steps=[step for step in steps if step.phase not in (Phase.PREPARE.value, Phase.FINETUNE.value)],
        load="../model",
    )
    teacher, students = reader.comparable(teacher, [student])
    return RunData(
        name=NAME,
        title=ancestry.title,
        phase="Succeeded",
        generation=None,
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
    )


def resource_of(run: RunData) -> dict[str, Any]:
    """A resource that makes the student again."""
    return {"apiVersion": API_VERSION, "kind": "CompressionRun", "metadata": {"name": run.name}, "spec": run.spec}


def spec_of(ancestry: Ancestry, job: ExportJob) -> dict[str, Any]:
    """The spec of a run of this student alone: what its jobs were told, defaults left out, Hub commits resolved."""
    prepare, told = ancestry.prepare, ancestry.prepared
    teacher, dataset = _given(told.teacher), _given(told.dataset)
    for source, resolved in ((teacher, prepare.resolved_teacher), (dataset, prepare.resolved_dataset)):
        if resolved.revision:
            source["revision"] = resolved.revision
    distill = ancestry.distill[0]
    # Text that was tokenized once serves every length.
    spec: dict[str, Any] = {"teacher": teacher, "dataset": dataset | {"sequenceLength": distill.sequence_length}}
    if ancestry.finetuned:
        spec["finetune"] = _given(ancestry.finetuned[0].finetune)
    spec["students"] = [{"name": NAME, "prune": _given(ancestry.prune[0].prune)}]
    spec["distill"] = _given(distill.distill)
    # A key of prune's counts on its device's arithmetic, which no setting says but whether it asks for a GPU.
    planned = ancestry.artifacts[Phase.PRUNE].manifest.metrics.get("plannedPrecision")
    phases = {"prune": {"gpusPerNode": 0}} if planned == Precision.FP32 else {}
    optional = {"validation": _given(distill.validation), "export": _given(job.export), "phases": phases}
    return spec | {name: settings for name, settings in optional.items() if settings}


def _step(phase: Phase, fingerprint: str, artifact: str) -> StepData:
    """A step that succeeded; when, and at which attempt, is the business of the run that it was a part of."""
    return StepData(
        name=phase.value,
        phase=phase.value,
        student=None,
        state="Succeeded",
        attempt=1,
        failures=0,
        cached=False,
        artifact=artifact,
        fingerprint=fingerprint,
        message="",
        start=None,
        end=None,
        progress={},
    )


def _given(settings: ConfigModel) -> dict[str, Any]:
    return settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)
