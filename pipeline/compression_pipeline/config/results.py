"""What the phases report, unless it stands beside the job in `phases`. What all report is `StepResult`'s."""

from pydantic import Field

from .architecture import Architecture
from .base import Record
from .export import ExportDtype
from .jobs import LEARNED, ResolvedSource, ResolvedText, StepResult
from .sequences import Share
from .tasks import GenerationFigures, TaskScore


class PrepareResult(StepResult):
    """What prepare reports: everything that the planner needs to go on."""

    key: str = Field(description="Key of the artifact, made from the content of the sources: artifacts/prepare-<key>.")
    teacher: Architecture
    teacher_parameters: int
    resolved_teacher: ResolvedSource
    resolved_dataset: ResolvedSource | None = Field(default=None, description="None where there are several sources.")
    resolved_sources: list[ResolvedText] = Field(default=[], description="Of several sources each, in their order.")
    documents: int
    train_tokens: int
    validation_tokens: int
    learned_tokens: int | None = Field(default=None, description=LEARNED)

    @property
    def found_key(self) -> str:
        return self.key

    @property
    def resolved_texts(self) -> list[ResolvedSource]:
        """Every source of text, also where there is one."""
        return [self.resolved_dataset] if self.resolved_dataset is not None else [*self.resolved_sources]

    @property
    def shares(self) -> list[Share]:
        """What each source of text is to a training."""
        several = [Share(one.source, one.weight, one.train_tokens) for one in self.resolved_sources]
        return several or [Share("", 1, self.train_tokens)]


MEASURED_OVER = (
    "Validation sequences that the losses are means over: validation.samples, or all there are. Losses over other "
    "numbers of them do not compare. None where an older image measured."
)


BY_SOURCE = "The same losses over the text of each of several sources; the others are their means by weight."


class SourceLosses(Record):
    """Validation losses over the text of one of several sources."""

    source: str = Field(description="Field of the manifest that names it, e.g. dataset.sources[1].")
    teacher: float
    corrected: float | None = None
    pruned: float | None = None
    distilled: float | None = None


class TrainingResult(StepResult):
    """What every phase that trains reports. Losses are mean nats per token over `validation_sequences`."""

    validation_sequences: int | None = Field(default=None, description=MEASURED_OVER)
    source_losses: list[SourceLosses] = Field(default=[], description=BY_SOURCE)
    tokens_per_second: float | None = None


class FinetuneResult(TrainingResult):
    """What finetune reports."""

    teacher_loss: float
    corrected_teacher_loss: float


BLOCK_SCORE = (
    "What importance.depth measured without the dropped block of layers, before anything else was cut or trained: "
    "LMLoss the loss in nats per token, Task the score."
)


class PruneResult(StepResult):
    """What prune reports."""

    student: Architecture
    parameters: int
    compression_ratio: float = Field(description="Student parameters / teacher parameters.")
    kept_layers: list[int] = Field(description="Layers of the teacher that the student keeps, counted from 1.")
    scores_reused: bool | None = Field(
        default=None, description="Whether all importance scores were measured before, for the same teacher."
    )
    block_score: float | None = Field(default=None, description=BLOCK_SCORE)


class DistillResult(TrainingResult):
    """What distill reports; teacher is the (corrected) one it learnt from."""

    teacher_loss: float
    pruned_loss: float
    distilled_loss: float
    rounded_losses: dict[str, float] = Field(
        default={},
        description="Loss of the student's weights rounded to each type that an export may have (ExportDtype's, or "
        "those of another version), in the arithmetic of training; a type that can't hold them is left out.",
    )
    losses: str | None = Field(default=None, description="What the student was trained to match, in words.")
    read_in_place: str | None = Field(
        default=None, description="What was read in place of the teacher, in words. Unset where the teacher ran."
    )
    extended_steps: int | None = Field(
        default=None, description="Steps beyond distill.steps, because the student missed accept after these."
    )
    best_step: int | None = Field(default=None, description="Step whose weights were kept, with distill.keepBest.")
    best_score: float | None = Field(
        default=None, description="Score of these weights in the task that distill.keepBest names."
    )
    task_scores: dict[str, float] = Field(
        default={}, description="By task: score of the kept weights while distilling, with distill.taskInterval."
    )


class ExportResult(StepResult):
    """What export reports."""

    parameters: int
    dtype: ExportDtype | None = Field(default=None, description="Type of the exported weights.")
    distilled_loss: float | None = Field(default=None, description="Validation loss of the exported weights.")
    relative_error: float = Field(description="max |exported - reference| / max |reference| of the logits, fp32.")
    bytes: int
    sample: str = Field(description="Prompt and greedy continuation by plain transformers (at most 1,000 characters).")
    teacher_sample: str | None = Field(
        default=None,
        description="The same by the (corrected) teacher; none where that is too large.",
    )


TASK_DIGESTS = (
    "By task: digest of its definition, its questions and the version of lm-eval. What a task decides depends on its "
    "own digest. Empty if the image is of an older version."
)


class TasksResult(StepResult):
    """What tasks reports."""

    key: str = Field(description="Key of the artifact, made from the content of the tasks: artifacts/tasks-<key>.")
    harness: str = Field(description="Version of lm-eval.")
    digests: dict[str, str] = Field(default={}, description=TASK_DIGESTS)

    @property
    def found_key(self) -> str:
        return self.key


class EvaluateResult(StepResult):
    """What evaluate reports."""

    tasks: list[TaskScore] = Field(default=[], description="What the model scored.")
    generation: GenerationFigures | None = Field(default=None, description="How fast it generates.")
    harness: str | None = Field(default=None, description="Version of lm-eval; none without tasks.")
    precision: str = Field(description="Arithmetic that the model was run in.")


class ReportResult(StepResult):
    """What report reports: nothing but that it is done."""
