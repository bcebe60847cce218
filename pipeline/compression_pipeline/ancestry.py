"""What led to a student: its chain of artifacts, read into the jobs that made them and what these reported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .artifact import Artifact
from .config import (
    DistillJob,
    DistillResult,
    ExportDtype,
    FinetuneJob,
    FinetuneResult,
    Phase,
    PrepareJob,
    PrepareResult,
    PruneJob,
    PruneResult,
)
from .config.phases import FORMER_NAMES
from .config.schemes import scheme_of
from .huggingface.terms import Terms


@dataclass(frozen=True)
class Ancestry:
    """The phases that led to a student, as their artifacts tell."""

    artifacts: Mapping[Phase, Artifact]  # in the phases' order; no finetune where the teacher was not corrected
    prepare: PrepareResult
    prepared: PrepareJob
    finetuned: tuple[FinetuneJob, FinetuneResult] | None
    prune: tuple[PruneJob, PruneResult]
    distill: tuple[DistillJob, DistillResult]
    calibration_samples: int
    validation_sequences: int  # that the losses of `distill` are means over
    teacher_loss: float | None  # of the teacher as it came; None where it was measured otherwise than the others
    arithmetic: str | None  # of distillation and of all losses; None where an older image did not tell

    @classmethod
    def read(cls, data: Artifact, teacher: Artifact, pruned: Artifact, distilled: Artifact) -> "Ancestry":
        """From the manifests; the teacher's artifact is finetune's, or prepare's without one."""
        finetuned = None
        if teacher.manifest.phase == "finetune":
            finetuned = _job(teacher, FinetuneJob, FinetuneResult)
        prepared, result = _job(data, PrepareJob, PrepareResult)
        distill = _job(distilled, DistillJob, DistillResult)
        sequences = measured_over(distilled, result) or distill[0].validation.samples
        comes = finetuned is None or measured_over(teacher, result) == sequences
        as_it_came = distill[1].teacher_loss if finetuned is None else finetuned[1].teacher_loss
        return cls(
            artifacts={
                Phase.PREPARE: data,
                **({Phase.FINETUNE: teacher} if finetuned else {}),
                Phase.PRUNE: pruned,
                Phase.DISTILL: distilled,
            },
            prepare=result,
            prepared=prepared,
            finetuned=finetuned,
            prune=_job(pruned, PruneJob, PruneResult),
            distill=distill,
            calibration_samples=pruned.manifest.metrics["calibrationSamples"],
            validation_sequences=sequences,
            teacher_loss=as_it_came if comes else None,
            arithmetic=distilled.manifest.metrics.get("precision"),
        )

    @property
    def terms(self) -> Terms:
        """What the teacher is published under."""
        return Terms.of(self.artifacts[Phase.PREPARE].model)

    def loss_of(self, dtype: ExportDtype) -> float:
        """Validation loss of the student's weights in this type; of the trained ones where an older image measured no
        others."""
        distilled = self.distill[1]
        return distilled.rounded_losses.get(dtype, distilled.distilled_loss)

    @property
    def title(self) -> str:
        """What the student is. It names no run and no student: two runs may share one export, each by its own name."""
        teacher = source_name(self.prepare.resolved_teacher.source)
        return f"{teacher} compressed to {short_number(self.prune[1].parameters)} parameters"


def measured_over(artifact: Artifact, prepare: PrepareResult | None) -> int | None:
    """Validation sequences that the losses of an artifact's result are means over; None where that can't be known.

    `prepare`: what was told of the text. An older image did not tell how many of its sequences it took.
    """
    manifest = artifact.manifest
    told = manifest.result.get("validationSequences", manifest.metrics.get("validationSequences"))
    if isinstance(told, int) or prepare is None:
        return told if isinstance(told, int) else None
    try:
        asked = manifest.config[FORMER_NAMES["validation"]]  # by the name that it has in jobs
        samples, length = int(asked["samples"]), int(manifest.config["sequenceLength"])
    except (KeyError, TypeError, ValueError):
        return None
    return min(samples, (prepare.validation_tokens - 1) // length)


def short_number(count: int) -> str:
    """A number of parameters as people say it: 4.51B, 63.2M, 870K."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def source_name(source: str) -> str:
    """The last part of a source: hf://owner/name, file:folder/name or pvc://claim/folder/name."""
    return scheme_of(source).name(source)


def _job(artifact: Artifact, job: type[Any], result: type[Any]) -> tuple[Any, Any]:
    # It may have been made by a newer version, and told more.
    told = job.model_validate(artifact.manifest.config, extra="ignore")
    return told, result.model_validate(artifact.manifest.result)
