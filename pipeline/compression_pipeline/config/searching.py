"""search: what its job is told and what it reports."""

from typing import ClassVar

from pydantic import Field

from .export import ExportDtype
from .jobs import EngineJob, StepResult
from .pruning import PruneConfig
from .shapes import Candidate
from .tasks import EvaluateConfig, GenerationConfig, GenerationFigures, TaskScore
from .training import DistillConfig, TrainingConfig, ValidationConfig


class SearchJob(EngineJob):
    """Measure shapes of the student that meet its target. Its artifact: `candidates.json`, the best first."""

    roles = (*EngineJob.roles, "tasks")
    blocks: ClassVar[tuple[str, ...]] = ("prune", "validation")

    data: str
    teacher: str = Field(description="Artifact with the (corrected) teacher: finetune's, or prepare's without one.")
    sequence_length: int
    prune: PruneConfig
    tasks: str | None = Field(
        default=None, description="Artifact with the tasks that layers and candidates are ranked by (tasks')."
    )
    evaluate: EvaluateConfig | None = Field(default=None, description="As PruneJob's.")
    ranked_by: EvaluateConfig | None = Field(
        default=None, description="The task alone that candidates are ranked by, and how it is asked."
    )
    generation: GenerationConfig | None = Field(
        default=None, description="How shapes are timed, where the target is in tokens per second."
    )
    dtype: ExportDtype | None = Field(default=None, description="Type that a GPU times them in, as evaluate does.")
    # By its own name in JSON: no older image knows this job, and `evaluate` is the task's.
    validation: ValidationConfig = Field(alias="validation")
    distill: DistillConfig | None = Field(
        default=None, description="Distillation of each candidate. Without one, the loss after pruning is measured."
    )

    @property
    def training(self) -> TrainingConfig | None:
        return self.distill

    def bytes_of_checkpoints(self, teacher: int, student: int, beside: int = 0) -> int:
        return super().bytes_of_checkpoints(student, 0, beside)

    @property
    def scored_by(self) -> EvaluateConfig | None:
        generation = None if self.generation == GenerationConfig() else self.generation
        given_in_prune = (
            (self.evaluate, self.prune.importance.depth_samples is not None),
            (self.ranked_by, self.prune.target is not None and self.prune.target.rank_samples is not None),
        )
        # Both may ask the same task. The number of questions that prune gives is not the task's own, which comes last.
        asked = [
            one.asked_in_full() if given else one
            for one, given in sorted(given_in_prune, key=lambda of: not of[1])
            if one is not None
        ]
        if not asked and generation is None:
            return None
        tasks = {task.name: task for one in asked for task in one.tasks}
        settings = asked[0] if asked else EvaluateConfig(generation=generation)
        return settings.model_copy(update={"tasks": list(tasks.values()), "generation": generation})


class SearchResult(StepResult):
    """What search reports. Losses as FinetuneResult's."""

    shapes: int = Field(
        description="Shapes that meet the target, of those that were timed where it is in tokens per second. Those "
        "that are measured are the least cut ones."
    )
    timed: int | None = Field(default=None, description="Shapes whose generation was timed, the teacher not counted.")
    teacher_generation: GenerationFigures | None = Field(
        default=None, description="How fast the teacher generates, where the target is in tokens per second."
    )
    teacher_loss: float
    validation_sequences: int = Field(description="Validation sequences that the losses are means over.")
    teacher_score: TaskScore | None = Field(
        default=None, description="What the teacher scored in the task that candidates are ranked by, with that task."
    )
    candidates: list[Candidate] = Field(
        min_length=1, description="Shapes that were measured, the best first, which is cut."
    )
