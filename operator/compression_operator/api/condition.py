"""A condition of a resource."""

from datetime import datetime

from pydantic import Field

from compression_pipeline.config import Record


class Condition(Record):
    """metav1.Condition."""

    type: str = Field(max_length=316, description="Type of the condition, e.g. Ready.")
    status: str = Field(pattern="^(True|False|Unknown)$", description="True, False or Unknown.")
    observed_generation: int = Field(
        default=0, ge=0, description="metadata.generation of the spec that the condition was set for."
    )
    last_transition_time: datetime = Field(description="Last time the status changed from one value to another.")
    reason: str = Field(
        min_length=1, max_length=1024, description="Reason for the last transition, as one CamelCase word for programs."
    )
    message: str = Field(
        default="", max_length=32768, description="Details of the last transition, as a sentence for people."
    )
