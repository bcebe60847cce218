"""What was measured of a model, as the status tells it."""

from pydantic import Field

from compression_pipeline.config import GenerationFigures, Record, TaskScore
from compression_pipeline.config.tasks import MOST_TASKS

from .resolved import WHOLE


class ValidationLoss(Record):
    """Validation losses, in mean nats per token over the same sequences."""

    teacher: float | None = Field(default=None, description="Loss of the original teacher.")
    corrected_teacher: float | None = Field(default=None, description="Loss of the corrected teacher.")
    pruned: float | None = Field(default=None, description="Loss of the pruned student, before distillation.")
    distilled: float | None = Field(default=None, description="Loss of the distilled student.")
    rounded: dict[str, float] | None = Field(
        default=None,
        max_length=8,
        description="Loss of the distilled student with its weights rounded to each dtype that export supports.",
    )
    exported: float | None = Field(
        default=None, description="Loss of the exported checkpoint, whose weights are rounded to export.dtype."
    )

    @property
    def final(self) -> float | None:
        """Of what the run hands out, as far as that is known."""
        return self.distilled if self.exported is None else self.exported


class Evaluation(Record):
    """What a model scored in tasks, and how fast it generates."""

    tasks: list[TaskScore] = Field(
        default=[],
        max_length=MOST_TASKS,
        json_schema_extra=WHOLE,
        description="Scores in the tasks of spec.evaluate. The 95 % confidence interval is the score plus or minus "
        "1.96 standard errors.",
    )
    generation: GenerationFigures | None = Field(default=None, description="Speed and memory of generation.")
