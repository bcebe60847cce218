"""What led to a student: its chain of artifacts, read into the jobs that made them and what these reported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compression_pipeline.artifact import Artifact
from compression_pipeline.config import (
    FORMER_NAMES,
    PHASES,
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
from compression_pipeline.config.members import LENIENT
from compression_pipeline.config.schemes import scheme_of
from compression_pipeline.huggingface.terms import Terms


@dataclass(frozen=True)
class Made:
    """One artifact of the chain."""

    artifact: Artifact
    job: Any  # PHASES[phase].job: what the phase was told
    result: Any  # PHASES[phase].result: what it reported


@dataclass(frozen=True)
class Ancestry:
    """The phases that led to a student, as their artifacts tell."""

    made: Mapping[Phase, Made]  # in the phases' order; no finetune where the teacher was not corrected

    @classmethod
    def read(cls, *artifacts: Artifact) -> "Ancestry":
        """From the manifests, in any order, the same artifact once or twice. The student's prepare, prune and distill
        are among them.
        """
        found = {Phase(artifact.manifest.phase): _made(artifact) for artifact in artifacts}
        return cls({phase: found[phase] for phase in Phase if phase in found})

    @property
    def prepared(self) -> PrepareJob:
        return self.made[Phase.PREPARE].job

    @property
    def prepare(self) -> PrepareResult:
        return self.made[Phase.PREPARE].result

    @property
    def finetuned(self) -> tuple[FinetuneJob, FinetuneResult] | None:
        made = self.made.get(Phase.FINETUNE)
        return (made.job, made.result) if made else None

    @property
    def prune(self) -> tuple[PruneJob, PruneResult]:
        return self.made[Phase.PRUNE].job, self.made[Phase.PRUNE].result

    @property
    def distill(self) -> tuple[DistillJob, DistillResult]:
        return self.made[Phase.DISTILL].job, self.made[Phase.DISTILL].result

    @property
    def calibration_samples(self) -> int:
        return self.made[Phase.PRUNE].artifact.manifest.metrics["calibrationSamples"]

    @property
    def validation_sequences(self) -> int:
        """That the losses of `distill` are means over."""
        return measured_over(self.made[Phase.DISTILL].artifact, self.prepare) or self.distill[0].validation.samples

    @property
    def teacher_loss(self) -> float | None:
        """Of the teacher as it came; None where it was measured otherwise than the others."""
        corrected = self.made.get(Phase.FINETUNE)
        if corrected is None:
            return self.distill[1].teacher_loss
        alike = measured_over(corrected.artifact, self.prepare) == self.validation_sequences
        return corrected.result.teacher_loss if alike else None

    @property
    def arithmetic(self) -> str | None:
        """Of distillation and of all losses; None where an older image did not tell."""
        return self.made[Phase.DISTILL].artifact.manifest.metrics.get("precision")

    @property
    def terms(self) -> Terms:
        """What the teacher is published under."""
        return Terms.of(self.made[Phase.PREPARE].artifact.model)

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


def _made(artifact: Artifact) -> Made:
    spec = PHASES[Phase(artifact.manifest.phase)]
    # It may have been made by a newer version, and told more.
    told = spec.job.model_validate(artifact.manifest.config, **LENIENT)
    return Made(artifact, told, spec.result.model_validate(artifact.manifest.result))
