"""What the attempts of a step tell while they run, and of those that failed what is kept in `status`."""

from datetime import datetime

from pydantic import Field

from compression_pipeline.config import Record
from compression_pipeline.config.tasks import MOST_TASKS


class Progress(Record):
    """Where a step stands; numbers that aren't finite are left out."""

    step: int = Field(description="Work done so far. Optimizer steps if the phase trains.")
    total_steps: int = Field(description="All work of the step, in the unit of step.")
    loss: float | None = Field(default=None, description="Newest training loss.")
    tokens_per_second: float | None = Field(
        default=None, description="Throughput over all ranks, in tokens per second."
    )
    documents_per_second: float | None = Field(
        default=None, description="Throughput in documents per second, while text is tokenized."
    )
    scores: dict[str, float] | None = Field(
        default=None,
        max_length=MOST_TASKS,
        description="Newest score in each task of distill.taskInterval.",
    )
    exported_step: int | None = Field(
        default=None,
        description="Step of the newest export that distill.exportEvery asked for: "
        "work/<fingerprint>/exports/step-<step> of the store.",
    )
    eta_seconds: int | None = Field(default=None, description="Estimated seconds left, at the current throughput.")
    time: datetime | None = Field(default=None, description="Time the job reported this progress.")


class AttemptRecord(Record):
    """Evidence of an attempt that did not succeed."""

    attempt: int = Field(description="Number of the attempt.")
    job_name: str = Field(description="Name of the attempt's job.")
    exit_class: str = Field(
        description="UserError (not retried), Transient (retried, and counted against retryLimit) "
        "or Interrupted (resumed, and not counted)."
    )
    message: str = Field(default="", description="What went wrong, as the attempt reported it.")
    pod: str | None = Field(default=None, description="Pod that reported the failure.")
    node: str | None = Field(default=None, description="Node that the pod ran on.")
    completion_time: datetime | None = Field(default=None, description="Time the attempt ended.")
