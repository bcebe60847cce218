"""search: what its job is told and what it reports."""

from typing import ClassVar

from pydantic import Field

from .jobs import EngineJob, StepResult
from .pruning import PruneConfig
from .shapes import Candidate
from .tasks import EvaluateConfig
from .training import DistillConfig, TrainingConfig, ValidationConfig


class SearchJob(EngineJob):
    """Measure shapes of the student that meet its target. Its artifact: `candidates.json`, the best first."""

    roles = (*EngineJob.roles, "tasks")
    blocks: ClassVar[tuple[str, ...]] = ("prune", "validation")

    data: str
    teacher: str = Field(description="Artifact with the (corrected) teacher: finetune's, or prepare's without one.")
    sequence_length: int
    prune: PruneConfig
    tasks: str | None = Field(default=None, description="As PruneJob's.")
    evaluate: EvaluateConfig | None = Field(default=None, description="As PruneJob's.")
    # By its own name in JSON: no older image knows this job, and `evaluate` is the task's.
    validation: ValidationConfig = Field(alias="validation")
    distill: DistillConfig | None = Field(
        default=None, description="Distillation of each candidate. Without one, the loss after pruning is measured."
    )

    @property
    def training(self) -> TrainingConfig | None:
        return self.distill

    def bytes_of_checkpoints(self, teacher: int, student: int) -> int:
        return super().bytes_of_checkpoints(student, 0)

    @property
    def scored_by(self) -> EvaluateConfig | None:
        return self.evaluate


class SearchResult(StepResult):
    """What search reports. Losses as FinetuneResult's."""

    shapes: int = Field(description="Shapes that meet the target. Those that are measured are the least cut ones.")
    teacher_loss: float
    validation_sequences: int = Field(description="Validation sequences that the losses are means over.")
    candidates: list[Candidate] = Field(
        min_length=1, description="Shapes that were measured, the best first, which is cut."
    )
