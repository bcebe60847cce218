"""`status` of a CompressionRun: what the operator has seen and done."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, model_validator

from compression_pipeline.config import (
    MOST_CANDIDATES,
    PHASES,
    Activation,
    Architecture,
    Candidate,
    ExportDtype,
    Family,
    Normalization,
    Phase,
    Record,
    Sizes,
    Verdict,
)
from compression_pipeline.config.results import BLOCK_SCORE

from .attempts import AttemptRecord, Progress
from .condition import Condition
from .measured import Evaluation, ValidationLoss
from .planned import PlannedTraining
from .resolved import WHOLE, Resolved, ResolvedTasks


class RunPhase(StrEnum):
    """One word for the whole run: the phase of its earliest unfinished step."""

    PENDING = "Pending"
    vars().update({spec.under_way.upper(): spec.under_way for spec in PHASES.values()})
    if TYPE_CHECKING:  # those that code and tests name
        PREPARING = "Preparing"
        FINETUNING = "Finetuning"
        PRUNING = "Pruning"
        DISTILLING = "Distilling"
        EXPORTING = "Exporting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


class StepState(StrEnum):
    """Where one step stands."""

    PENDING = "Pending"  # waits for its inputs, for a free slot, or for a retry; it has no job that goes on
    STARTING = "Starting"  # its job exists, or was just asked for; none of its processes runs yet
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"  # an input failed, or a student cannot be made: it does not run

    @property
    def active(self) -> bool:
        """Whether the step's newest job goes on."""
        return self in (StepState.STARTING, StepState.RUNNING)

    @property
    def final(self) -> bool:
        """Whether nothing more happens to the step unless the run is edited, or a retry asked for."""
        return self in (StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED)


IN_VAIN = 3
"""Interruptions in a row, without progress in between, that are no longer taken for a cluster's everyday life."""


MOST_FIGURES = 64
"""Figures of one student that no field of the status is made for; its report and its artifacts hold all of them."""

BY_TYPE: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
"""As metav1 conditions are: a map by type, of which others may own entries."""


class Step(Record):
    """One step of the plan: a phase, for one student or for all of them."""

    name: str = Field(description="Name of the step, e.g. distill-width; unique within the run.")
    phase: Phase = Field(description="Phase that the step runs.")
    student: str | None = Field(
        default=None, description="Student that the step is for. Unset if it is for all students."
    )
    state: StepState = Field(default=StepState.PENDING, description="State of the step.")
    attempt: int = Field(default=0, description="Number of the newest attempt. 0 before the first.")
    failures: int = Field(default=0, description="Attempts that count against retryLimit.")
    interruptions: int = Field(
        default=0,
        description="Attempts in a row that were interrupted without progress beyond that of earlier attempts.",
    )
    deletions: int = Field(
        default=0, description="How many of these interruptions happened because something else deleted the job."
    )
    furthest: int = Field(default=0, description="Highest progress.step of all attempts.")
    job_name: str | None = Field(default=None, description="Name of the newest attempt's job.")
    fingerprint: str | None = Field(
        default=None,
        description="Hash of the settings and inputs that shape the step's result. Unset until all inputs are known.",
    )
    artifact: str | None = Field(
        default=None, description="Name of the published artifact in the store: <phase>-<key>."
    )
    digest: str | None = Field(
        default=None,
        description="SHA-256 of the artifact's manifest.json, which lists the digests of all its files. The job that "
        "made or adopted the artifact reports it. Later steps accept the artifact only with this digest. Unset if an "
        "older image reported none.",
    )
    lost_attempt: int = Field(
        default=0,
        description="Attempt whose artifact is missing from the store or was changed. That attempt and earlier ones "
        "no longer count.",
    )
    remakes: int = Field(default=0, description="Number of times an input of the step had to be made again.")
    cached: bool = Field(default=False, description="Whether the artifact already existed in the store.")
    start_time: datetime | None = Field(default=None, description="Time the newest attempt's first process started.")
    completion_time: datetime | None = Field(default=None, description="Time the step ended.")
    retry_time: datetime | None = Field(default=None, description="Earliest time of the next attempt.")
    message: str = Field(default="", description="What the step waits for, or why it failed.")
    waiting_reason: str | None = Field(
        default=None,
        description="Why the job's pods have not been running for some time: Unschedulable, NodeUnreachable, "
        "ImagePullFailed, ContainerConfigError, ContainerCreating, ContainerStartFailed or PodsNotCreated. "
        "JobNameTaken if the job itself cannot be created, JobNotRecognized if its labels or its ownerReference were "
        "removed. The condition Degraded has the same reason.",
    )
    name_taken_since: datetime | None = Field(
        default=None,
        description="Time since which another object has had the name of the next attempt's job. After a while the "
        "step skips that attempt number.",
    )
    progress: Progress | None = Field(default=None, description="Progress of the running attempt.")
    last_failure: AttemptRecord | None = Field(default=None, description="Newest attempt that did not succeed.")

    @model_validator(mode="before")
    @classmethod
    def _in_another_versions_state(cls, stored: Any) -> Any:
        """Whether a step goes on whose state only another version knows, its job tells."""
        if _is_one_of(StepState, _field(stored, "state")):
            return stored
        goes_on = _field(stored, "jobName") is not None
        return {**cast(dict[str, Any], stored), "state": StepState.STARTING if goes_on else StepState.PENDING}

    @property
    def makes_no_progress(self) -> bool:
        """Whether so many attempts in a row were interrupted without progress that somebody should look into it."""
        return self.interruptions >= IN_VAIN


class StudentStatus(Record):
    """The figures of one student."""

    name: str = Field(description="Name of the student.")
    parameters: int | None = Field(default=None, description="Number of parameters.")
    compression_ratio: float | None = Field(default=None, description="Student parameters / teacher parameters.")
    planned: PlannedTraining | None = Field(
        default=None, description="What the distillation is expected to need, from when the teacher is known."
    )
    shape: Sizes | None = Field(
        default=None, description="Sizes that were chosen for prune.target. Unset until the search is done."
    )
    candidates: list[Candidate] | None = Field(
        default=None,
        max_length=MOST_CANDIDATES,
        json_schema_extra=WHOLE,
        description="Shapes that the search for prune.target measured, the best first. Unset without one.",
    )
    validation_loss: ValidationLoss = Field(
        default=ValidationLoss(), description="Validation losses, in mean nats per token over the same sequences."
    )
    scores_reused: bool | None = Field(
        default=None,
        description="Whether all importance scores are those of an earlier prune of the same teacher, so that no "
        "forward pass was needed.",
    )
    kept_layers: str | None = Field(
        default=None, max_length=4096, description="Layers of the teacher that were kept, e.g. 1 to 15, 32."
    )
    block_score: float | None = Field(default=None, description=BLOCK_SCORE)
    losses: str | None = Field(
        default=None,
        max_length=1000,
        description="What the student was trained to match, and why if the loss Auto chose it.",
    )
    tokens_per_second: float | None = Field(
        default=None, description="Mean throughput of distillation over all ranks, in tokens per second."
    )
    artifact: str | None = Field(
        default=None,
        description="Name of the artifact to publish: that of export, and with evaluate that of report once the "
        "student is scored. In the store, artifacts/<name>/model is the checkpoint with its card, and "
        "artifacts/<name>/report/index.html its report.",
    )
    dtype: ExportDtype | None = Field(default=None, description="Data type of the exported weights.")
    sample: str | None = Field(default=None, max_length=1000, description="Text that the exported student generated.")
    evaluation: Evaluation | None = Field(
        default=None,
        description="Scores of the student, with its weights rounded to export.dtype, and its speed. The teacher's are "
        "in status.teacher.",
    )
    extended_steps: int | None = Field(
        default=None,
        description="Steps that distillation went on for, because the student missed accept after distill.steps.",
    )
    best_step: int | None = Field(
        default=None, description="Step of distillation whose weights were kept. Unset without distill.keepBest."
    )
    best_score: float | None = Field(
        default=None, description="Score of these weights in the task that distill.keepBest names."
    )
    gate: list[Verdict] | None = Field(
        default=None,
        max_length=32,
        json_schema_extra=WHOLE,
        description="What each criterion of accept says of the exported student. Unset without accept.",
    )
    figures: dict[str, float] | None = Field(
        default=None,
        max_length=MOST_FIGURES,
        description="Numbers of phases that have no status field of their own, by <phase>.<figure>.",
    )


class TeacherStatus(Architecture):
    """The teacher as prepare found it, and its figures."""

    rope_scaling: dict[str, Any] | None = Field(
        default=None,
        description="rope_scaling of the Hugging Face configuration, unchanged.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    parameter_count: int = Field(description="Number of parameters, tied embeddings counted once.")
    validation_loss: float | None = Field(
        default=None, description="Validation loss of the original teacher. Unset if finetune did not run."
    )
    corrected_validation_loss: float | None = Field(
        default=None, description="Validation loss of the corrected teacher. Unset if finetune did not run."
    )
    evaluation: Evaluation | None = Field(default=None, description="Scores and speed of the original teacher.")
    corrected_evaluation: Evaluation | None = Field(default=None, description="Those of the corrected teacher.")
    planned: PlannedTraining | None = Field(
        default=None, description="What finetune is expected to need. Unset without finetune."
    )


class CompressionRunStatus(Record):
    """Everything the operator knows of the run."""

    phase: RunPhase = Field(default=RunPhase.PENDING, description="Phase of the earliest unfinished step.")
    observed_generation: int = Field(
        default=0, description="metadata.generation of the spec that the operator planned last."
    )
    conditions: list[Condition] = Field(
        default=[],
        json_schema_extra=BY_TYPE,
        description="Ready, Progressing, Degraded, Suspended, Reconciling and Stalled; Accepted if there is accept.",
    )
    start_time: datetime | None = Field(
        default=None, description="Time the run started, or started again after it had finished."
    )
    completion_time: datetime | None = Field(default=None, description="Time the last step ended.")
    teacher: TeacherStatus | None = Field(default=None, description="Architecture of the teacher, as prepare found it.")
    resolved: Resolved | None = Field(
        default=None, description="Exact versions of the sources, as prepare resolved them."
    )
    tasks: ResolvedTasks | None = Field(
        default=None, description="Content of the tasks that models are scored by. Unset without tasks."
    )
    image: str | None = Field(
        default=None, description="Image of the jobs. An upgrade of the operator does not change it."
    )
    managed_by: str | None = Field(
        default=None,
        description="Installation of the operator that manages the run, as namespace/name of its lease. Other "
        "installations ignore the run.",
    )
    handled_retry: str | None = Field(
        default=None, description="Last value of the retry annotation that the operator acted on."
    )
    steps: list[Step] = Field(default=[], json_schema_extra=WHOLE, description="Steps of the plan, in order.")
    students: list[StudentStatus] = Field(
        default=[], json_schema_extra=WHOLE, description="Sizes, losses and artifacts of the students."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_another_version(cls, stored: Any) -> Any:
        """What can be read of a status that holds words which only another version knows: a phase, a model family. A
        run must go on after the operator went back to an older version.
        """
        if not isinstance(stored, dict):
            return stored
        known = dict(cast(dict[str, Any], stored))
        if not _is_one_of(RunPhase, known.get("phase")):
            del known["phase"]
        if not all(_is_one_of(words, _field(known.get("teacher"), name)) for name, words in _TEACHERS_WORDS):
            del known["teacher"]
        if isinstance(known.get("steps"), list):
            known["steps"] = [step for step in known["steps"] if _is_one_of(Phase, _field(step, "phase"))]
        return known

    def step(self, name: str) -> Step | None:
        """The step of this name."""
        return next((step for step in self.steps if step.name == name), None)

    def student(self, name: str) -> StudentStatus | None:
        """The student of this name."""
        return next((student for student in self.students if student.name == name), None)


_TEACHERS_WORDS = (("family", Family), ("activation", Activation), ("normalization", Normalization))


def _is_one_of(words: type[StrEnum], word: Any) -> bool:
    """Whether the word is known; one that is no word at all is another matter."""
    return not isinstance(word, str) or word in set(words)


def _field(stored: Any, name: str) -> Any:
    return cast(dict[str, Any], stored).get(name) if isinstance(stored, dict) else None
