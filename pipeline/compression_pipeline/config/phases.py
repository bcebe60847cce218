"""The phases: what the job of each is told, what it reports, and what kind of job it is (`PHASES`)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from .export import ExportConfig, ExportDtype
from .gates import AcceptConfig
from .jobs import EngineJob, JobConfig
from .phase_spec import PhaseSpec
from .pruning import PruneConfig
from .results import (
    DistillResult,
    EvaluateResult,
    ExportResult,
    FinetuneResult,
    PrepareResult,
    PruneResult,
    ReportResult,
    TasksResult,
)
from .searching import SearchJob, SearchResult
from .sources import DatasetConfig, TeacherConfig
from .tasks import EvaluateConfig
from .teacher_logits import LogitsJob, LogitsResult
from .training import DistillConfig, FinetuneConfig, TrainingConfig, ValidationConfig

WEIGHT = 4
"""Bytes of one parameter of a model between phases (float32 on CPU; bfloat16 on GPU takes half)."""


class Phase(StrEnum):
    """The phases, in their order. `PHASES` says what each of them is."""

    PREPARE = "prepare"
    TASKS = "tasks"
    FINETUNE = "finetune"
    SEARCH = "search"
    PRUNE = "prune"
    LOGITS = "logits"
    DISTILL = "distill"
    EXPORT = "export"
    BASELINE = "baseline"
    BASELINE_CORRECTED = "baseline-corrected"
    EVALUATE = "evaluate"
    REPORT = "report"


class SourcesJob(JobConfig):
    """A job that reads sources of the manifest."""

    source_roots: dict[str, str] = Field(
        default={},
        description='Where sources are found: "file" -> folder that file: paths are relative to, '
        '"pvc://claim" -> mount point of the claim.',
    )
    aside: list[str] = Field(
        default=[],
        description="Absolute paths that are no part of a source that they lie in: files of a local run. The store is "
        "none either.",
    )


class PrepareJob(SourcesJob):
    """Fetch the teacher, look at it, tokenize the text. Its artifact: `model/` (the teacher) and `data/`."""

    blocks: ClassVar[tuple[str, ...]] = ("teacher", "dataset")

    teacher: TeacherConfig
    dataset: DatasetConfig

    @property
    def sources(self) -> tuple[str, ...]:
        """The teacher's and the dataset's."""
        return self.teacher.model, *(text.source for text in self.dataset.texts)


class TasksJob(SourcesJob):
    """Fetch the definitions of tasks and their questions. Its artifact: `definitions.json` and `data/`."""

    blocks: ClassVar[tuple[str, ...]] = ("evaluate",)

    evaluate: EvaluateConfig

    @property
    def sources(self) -> tuple[str, ...]:
        """The folders of the user's own tasks."""
        return tuple(dict.fromkeys(task.source for task in self.evaluate.tasks if task.source))


class FinetuneJob(EngineJob):
    """Correct the teacher. Its artifact: `model/`, the corrected teacher as a Hugging Face checkpoint."""

    blocks: ClassVar[tuple[str, ...]] = ("finetune", "validation")

    data: str = Field(description="Artifact with the tokenized text (prepare's).")
    teacher: str = Field(description="Artifact with the teacher (prepare's).")
    sequence_length: int
    finetune: FinetuneConfig
    validation: ValidationConfig

    @property
    def training(self) -> TrainingConfig:
        return self.finetune

    def bytes_kept(self, teacher: int, student: int) -> int:
        return teacher * WEIGHT


class PruneJob(EngineJob):
    """Cut the student out of the (corrected) teacher. Its artifact: `model/`, importance scores and plot."""

    roles = (*EngineJob.roles, "tasks", "searched")
    blocks: ClassVar[tuple[str, ...]] = ("prune",)

    data: str
    teacher: str = Field(description="Artifact with the (corrected) teacher: finetune's, or prepare's without one.")
    sequence_length: int
    prune: PruneConfig
    tasks: str | None = Field(default=None, description="Artifact with the task that layers are ranked by (tasks').")
    evaluate: EvaluateConfig | None = Field(default=None, description="That task alone, and how it is asked.")
    searched: str | None = Field(
        default=None, description="Artifact with the shape (search's), where the sizes are searched by measurement."
    )

    @property
    def scored_by(self) -> EvaluateConfig | None:
        if self.evaluate is None or self.searched is not None:
            return None  # the search tells, which asks the same
        given = self.prune.importance.depth_samples is not None
        return self.evaluate.asked_in_full() if given else self.evaluate

    def bytes_kept(self, teacher: int, student: int) -> int:
        return (student or teacher) * WEIGHT


class DistillJob(EngineJob):
    """Train the student on the teacher's logits. Its artifact: `model/` and, for export's proof, reference logits.

    The reference logits are float32, of the weights rounded to each dtype that an export may have.
    """

    roles = (*JobConfig.roles, "tasks", "logits")
    blocks: ClassVar[tuple[str, ...]] = ("distill", "validation")

    data: str
    teacher: str
    pruned: str = Field(description="Artifact with the pruned student (prune's).")
    sequence_length: int
    distill: DistillConfig
    validation: ValidationConfig
    accept: AcceptConfig | None = Field(
        default=None, description="The gate, if a student that misses it is trained on."
    )
    logits: str | None = Field(
        default=None, description="Artifact with the teacher's logits (logits'), if they are read in place of it."
    )
    tasks: str | None = Field(default=None, description="Artifact with the tasks (tasks'), if any student is scored.")
    scoring: EvaluateConfig | None = Field(
        default=None, description="Tasks that the student is scored by while it is distilled."
    )
    dtype: ExportDtype | None = Field(
        default=None,
        description="Data type that export will have; weights are rounded to it to be scored or exported on the way.",
    )

    @property
    def training(self) -> TrainingConfig:
        return self.distill

    @property
    def scored_by(self) -> EvaluateConfig | None:
        return self.scoring

    def bytes_kept(self, teacher: int, student: int) -> int:
        return (student or teacher) * WEIGHT

    def bytes_of_checkpoints(self, teacher: int, student: int, beside: int = 0) -> int:
        # The best weights of each checkpoint that is kept, and those that come next.
        best = (self.distill.keep_checkpoints + 1) * WEIGHT if self.distill.keep_best else 0
        # One intermediate export more than are kept: the new one is whole before the oldest goes.
        width = 4 if self.dtype is ExportDtype.FLOAT32 else 2
        exported = (self.distill.export_keep + 1) * width if self.distill.export_every is not None else 0
        trained = student or teacher
        return super().bytes_of_checkpoints(trained, 0, beside) + trained * (best + exported)


class EvaluateJob(JobConfig):
    """Score a model by tasks, and measure how fast it generates. Its artifact: `scores.json`, with every metric."""

    roles = ("model", "tasks")
    blocks: ClassVar[tuple[str, ...]] = ("evaluate",)

    model: str = Field(description="Artifact with the model to evaluate.")
    tasks: str | None = Field(default=None, description="Artifact with the tasks (tasks'); none without tasks.")
    evaluate: EvaluateConfig
    dtype: ExportDtype | None = Field(
        default=None, description="Data type that the weights are rounded to first, as export will. Default: as stored."
    )


class ExportJob(JobConfig):
    """Write the student as a Hugging Face checkpoint with its card, and prove it.

    Its artifact: `model/` and `report/index.html`.
    """

    roles = (*JobConfig.roles, "searched")
    blocks: ClassVar[tuple[str, ...]] = ("export",)

    data: str
    teacher: str
    pruned: str
    distilled: str = Field(description="Artifact with the distilled student (distill's).")
    searched: str | None = Field(default=None, description="Artifact with the searched shapes (search's).")
    export: ExportConfig

    def bytes_kept(self, teacher: int, student: int) -> int:
        return (student or teacher) * (4 if self.export.dtype is ExportDtype.FLOAT32 else 2)


class ReportJob(JobConfig):
    """Tell the scores in card and report of an exported student.

    Its artifact is the export's with another card and report. The weights are the same files (hard links).
    """

    roles = (*JobConfig.roles, "exported", "baseline", "baseline_corrected", "evaluated", "searched")

    data: str
    teacher: str
    pruned: str
    distilled: str
    exported: str = Field(description="Artifact with the student's checkpoint (export's).")
    baseline: str | None = Field(
        default=None, description="Artifact with the teacher's scores. Unset where it could not be scored."
    )
    baseline_corrected: str | None = Field(
        default=None, description="Artifact with the corrected teacher's scores. Unset where there are none."
    )
    evaluated: str = Field(description="Artifact with the student's scores (evaluate's).")
    searched: str | None = Field(default=None, description="Artifact with the searched shapes (search's).")


PHASES: Mapping[Phase, PhaseSpec] = {
    spec.phase: spec
    for spec in (
        PhaseSpec(
            Phase.PREPARE,
            PrepareJob,
            PrepareResult,
            under_way="Preparing",
            purpose="fetch the teacher and tokenize the text",
            per_student=False,
            single_process=True,
            reads_sources=True,
        ),
        PhaseSpec(
            Phase.TASKS,
            TasksJob,
            TasksResult,
            under_way="Preparing",
            purpose="fetch the tasks that models are scored by",
            per_student=False,
            single_process=True,
            reads_sources=True,
        ),
        PhaseSpec(
            Phase.FINETUNE,
            FinetuneJob,
            FinetuneResult,
            under_way="Finetuning",
            purpose="correct the teacher",
            gpus=8,
            per_student=False,
            trains=True,
        ),
        PhaseSpec(
            Phase.SEARCH,
            SearchJob,
            SearchResult,
            under_way="Searching",
            purpose="measure shapes of students that have a target",
            gpus=1,
        ),
        PhaseSpec(
            Phase.PRUNE, PruneJob, PruneResult, under_way="Pruning", purpose="prune the teacher into students", gpus=1
        ),
        PhaseSpec(
            Phase.LOGITS,
            LogitsJob,
            LogitsResult,
            under_way="CachingLogits",
            purpose="write the teacher's logits for distillations with teacherLogits: Cached",
            gpus=8,
            spreads=True,
        ),
        PhaseSpec(
            Phase.DISTILL,
            DistillJob,
            DistillResult,
            under_way="Distilling",
            purpose="train the students",
            gpus=8,
            trains=True,
        ),
        PhaseSpec(
            Phase.EXPORT,
            ExportJob,
            ExportResult,
            under_way="Exporting",
            purpose="write the students as Hugging Face checkpoints",
            single_process=True,
            delivers=True,
        ),
        PhaseSpec(
            Phase.BASELINE,
            EvaluateJob,
            EvaluateResult,
            under_way="Evaluating",
            purpose="evaluate the teacher",
            gpus=1,
            per_student=False,
            single_process=True,
            like=Phase.EVALUATE,
        ),
        PhaseSpec(
            Phase.BASELINE_CORRECTED,
            EvaluateJob,
            EvaluateResult,
            under_way="Evaluating",
            purpose="evaluate the corrected teacher",
            gpus=1,
            per_student=False,
            single_process=True,
            like=Phase.EVALUATE,
        ),
        PhaseSpec(
            Phase.EVALUATE,
            EvaluateJob,
            EvaluateResult,
            under_way="Evaluating",
            purpose="evaluate the teacher, the corrected teacher and the students",
            gpus=1,
            single_process=True,
        ),
        PhaseSpec(
            Phase.REPORT,
            ReportJob,
            ReportResult,
            under_way="Reporting",
            purpose="write the scores into the students' cards and reports",
            single_process=True,
            delivers=True,
        ),
    )
}
"""Every phase, in their order."""
