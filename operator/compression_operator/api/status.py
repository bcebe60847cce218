"""`status` of a CompressionRun: what the operator has seen and done."""

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, model_validator

from compression_pipeline.config import PHASES, Architecture, ExportDtype, Family, Phase, Record, ResolvedSource


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


BY_TYPE: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
"""As metav1 conditions are: a map by type, of which others may own entries."""

WHOLE: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
"""A list that has one owner, the operator. As a map it would cost the API server a fifth more for each write of a
status, which would carry the ownership of every field of every entry.
"""


class Condition(Record):
    """metav1.Condition."""

    type: str = Field(max_length=316, description="What the condition is about.")
    status: str = Field(pattern="^(True|False|Unknown)$", description="True, False or Unknown.")
    observed_generation: int = Field(
        default=0, ge=0, description="metadata.generation of the spec that the condition speaks of."
    )
    last_transition_time: datetime = Field(description="When status changed last.")
    reason: str = Field(min_length=1, max_length=1024, description="Why, in one word for programs.")
    message: str = Field(default="", max_length=32768, description="Why, in a sentence for people.")


class Progress(Record):
    """Where a step stands; numbers that aren't finite are left out."""

    step: int = Field(description="What is done; optimizer steps where the phase trains.")
    total_steps: int = Field(description="What there is to do, in the same unit.")
    loss: float | None = Field(default=None, description="Newest training loss.")
    tokens_per_second: float | None = Field(default=None, description="Tokens a second, over all ranks.")
    documents_per_second: float | None = Field(default=None, description="Documents a second, where text is tokenized.")
    eta_seconds: int | None = Field(default=None, description="Seconds left at the present speed.")
    time: datetime | None = Field(default=None, description="When the job said so.")


class AttemptRecord(Record):
    """Evidence of an attempt that did not succeed."""

    attempt: int = Field(description="Number of the attempt.")
    job_name: str = Field(description="Name of its job.")
    exit_class: str = Field(description="UserError, Transient or Interrupted.")
    message: str = Field(default="", description="What went wrong, in the attempt's own words.")
    pod: str | None = Field(default=None, description="The pod that told it.")
    node: str | None = Field(default=None, description="The node that the pod ran on.")
    completion_time: datetime | None = Field(default=None, description="When it ended.")


class Step(Record):
    """One step of the plan: a phase, for one student or for all of them."""

    name: str = Field(description="Name of the step, e.g. distill-width; unique within the run.")
    phase: Phase = Field(description="What the step does.")
    student: str | None = Field(default=None, description="The student that it is for; none where it is for all.")
    state: StepState = Field(default=StepState.PENDING, description="Where the step stands.")
    attempt: int = Field(default=0, description="The newest attempt; 0 before the first.")
    failures: int = Field(default=0, description="Attempts that count against retryLimit.")
    interruptions: int = Field(
        default=0, description="Attempts in a row that were interrupted before they came further than any earlier one."
    )
    deletions: int = Field(
        default=0, description="How many of these interruptions were a job that somebody else deleted."
    )
    furthest: int = Field(default=0, description="The highest progress.step of all attempts.")
    job_name: str | None = Field(default=None, description="Job of the newest attempt.")
    fingerprint: str | None = Field(default=None, description="Unknown until the step's inputs are known.")
    artifact: str | None = Field(default=None, description="<phase>-<key> in the store, once published.")
    digest: str | None = Field(
        default=None,
        description="SHA-256 of the artifact's manifest.json, and so of all that is in it, as told by the job that "
        "made or adopted it. Later steps take no other; none where an older image told none.",
    )
    lost_attempt: int = Field(
        default=0,
        description="The attempt whose artifact is gone from the store, or changed; it and those before count no more.",
    )
    remakes: int = Field(default=0, description="How often an artifact that the step needs had to be made again.")
    cached: bool = Field(default=False, description="Whether the artifact was there already.")
    unseen_since: datetime | None = Field(
        default=None,
        description="When the newest attempt's job was asked for; gone with the first write after the job was seen.",
    )
    start_time: datetime | None = Field(default=None, description="When the newest attempt's first process ran.")
    completion_time: datetime | None = Field(default=None, description="When the step ended.")
    retry_time: datetime | None = Field(default=None, description="When the next attempt may start.")
    message: str = Field(default="", description="What the step waits for, or why it failed.")
    waiting_reason: str | None = Field(
        default=None,
        description="What keeps the job's pods from running, once that has lasted: Unschedulable, NodeUnreachable, "
        "ImagePullFailed, ContainerConfigError, ContainerCreating, ContainerStartFailed or PodsNotCreated; or the job "
        "from being made: JobNameTaken. Also the reason of Degraded.",
    )
    name_taken_since: datetime | None = Field(
        default=None,
        description="Since when the name of the next attempt's job is that of another's; after a while that attempt's "
        "number is passed over.",
    )
    progress: Progress | None = Field(default=None, description="Where the running attempt stands.")
    last_failure: AttemptRecord | None = Field(default=None, description="The newest attempt that did not succeed.")

    @model_validator(mode="before")
    @classmethod
    def _in_another_versions_state(cls, stored: Any) -> Any:
        """Whether a step goes on whose state only another version knows, its job tells."""
        if _is_one_of(StepState, _field(stored, "state")):
            return stored
        goes_on = _field(stored, "jobName") is not None
        return {**cast(dict[str, Any], stored), "state": StepState.STARTING if goes_on else StepState.PENDING}

    @property
    def in_vain(self) -> bool:
        """Whether so many attempts in a row were interrupted without progress that somebody should look into it."""
        return self.interruptions >= IN_VAIN


class ValidationLoss(Record):
    """Mean nats per token over the same validation sequences."""

    teacher: float | None = Field(default=None, description="Of the teacher as it came.")
    corrected_teacher: float | None = Field(default=None, description="Of the teacher after correction.")
    pruned: float | None = Field(default=None, description="Of the student as pruning left it.")
    distilled: float | None = Field(default=None, description="Of the student after distillation.")
    rounded: dict[str, float] | None = Field(
        default=None,
        max_length=8,
        description="Of the distilled student's weights rounded to each type that an export may have.",
    )
    exported: float | None = Field(
        default=None, description="Of the exported weights, which are the student's rounded to export.dtype."
    )

    @property
    def final(self) -> float | None:
        """Of what the run hands out, as far as that is known."""
        return self.distilled if self.exported is None else self.exported


class StudentStatus(Record):
    """The figures of one student."""

    name: str = Field(description="Name of the student.")
    parameters: int | None = Field(default=None, description="Number of parameters.")
    compression_ratio: float | None = Field(default=None, description="Student parameters / teacher parameters.")
    validation_loss: ValidationLoss = Field(
        default=ValidationLoss(), description="Mean nats per token over the same validation sequences."
    )
    tokens_per_second: float | None = Field(default=None, description="Distillation's mean throughput.")
    artifact: str | None = Field(
        default=None,
        description="The exported checkpoint, <store>/artifacts/<this>/model, and its report beside it, "
        "report/index.html.",
    )
    dtype: ExportDtype | None = Field(default=None, description="Type of the exported weights.")
    sample: str | None = Field(default=None, max_length=1000, description="A generated sentence.")


class TeacherStatus(Architecture):
    """The teacher as prepare found it, and its figures."""

    rope_scaling: dict[str, Any] | None = Field(
        default=None,
        description="Hugging Face's rope_scaling, as it is.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    parameter_count: int = Field(description="Number of parameters, tied embeddings counted once.")
    validation_loss: float | None = Field(default=None, description="Of the teacher as it came, where finetune ran.")
    corrected_validation_loss: float | None = Field(default=None, description="Of the teacher that finetune made.")


class Resolved(Record):
    """What the sources turned out to be; the keys of all later steps rest on it."""

    key: str = Field(description="Key of prepare's artifact.")
    teacher: ResolvedSource = Field(description="The teacher that was found.")
    dataset: ResolvedSource = Field(description="The dataset that was found.")
    train_tokens: int | None = Field(default=None, description="Tokens of text to train on.")
    validation_tokens: int | None = Field(default=None, description="Tokens of held-out text.")


class CompressionRunStatus(Record):
    """Everything the operator knows of the run."""

    phase: RunPhase = Field(default=RunPhase.PENDING, description="Phase of the earliest unfinished step.")
    observed_generation: int = Field(default=0, description="metadata.generation of the spec that was planned last.")
    conditions: list[Condition] = Field(
        default=[], json_schema_extra=BY_TYPE, description="Ready and its kin, for people and programs."
    )
    start_time: datetime | None = Field(default=None, description="When the run was planned first.")
    completion_time: datetime | None = Field(default=None, description="When the last step ended.")
    teacher: TeacherStatus | None = Field(default=None, description="The teacher as prepare found it.")
    resolved: Resolved | None = Field(default=None, description="What the sources turned out to be.")
    image: str | None = Field(default=None, description="Image of the jobs, kept when the operator is upgraded.")
    managed_by: str | None = Field(
        default=None,
        description="The installation of the operator that looks after the run: namespace and name of its lease. Every "
        "other one leaves it alone.",
    )
    handled_retry: str | None = Field(default=None, description="Last value of the retry annotation acted on.")
    steps: list[Step] = Field(default=[], json_schema_extra=WHOLE, description="The steps of the plan.")
    students: list[StudentStatus] = Field(
        default=[], json_schema_extra=WHOLE, description="The figures of each student."
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
        if not _is_one_of(Family, _field(known.get("teacher"), "family")):
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


def _is_one_of(words: type[StrEnum], word: Any) -> bool:
    """Whether the word is known; one that is no word at all is another matter."""
    return not isinstance(word, str) or word in set(words)


def _field(stored: Any, name: str) -> Any:
    return cast(dict[str, Any], stored).get(name) if isinstance(stored, dict) else None
