"""What the sources of a run turned out to be, as the status tells it."""

from typing import Any

from pydantic import Field

from compression_pipeline.config import LEARNED, Record, ResolvedSource, ResolvedText, Share
from compression_pipeline.config.results import TASK_DIGESTS
from compression_pipeline.config.tasks import MOST_TASKS

WHOLE: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
"""A list that has one owner, the operator. As a map it would cost the API server a fifth more for each write of a
status, which would carry the ownership of every field of every entry.
"""


class Resolved(Record):
    """What the sources turned out to be; the keys of all later steps rest on it."""

    key: str = Field(description="Key of the artifact that prepare made.")
    teacher: ResolvedSource = Field(description="The resolved teacher.")
    dataset: ResolvedSource | None = Field(
        default=None, description="The resolved dataset. Unset if it has several sources."
    )
    sources: list[ResolvedText] = Field(
        default=[], json_schema_extra=WHOLE, description="The resolved sources of a dataset that has several."
    )
    train_tokens: int | None = Field(default=None, description="Tokens in the training split.")
    validation_tokens: int | None = Field(default=None, description="Tokens in the validation split.")
    learned_tokens: int | None = Field(default=None, description=LEARNED)

    @property
    def shares(self) -> list[Share]:
        """What each source of text is to a training; nothing where an older image did not tell."""
        several = [Share(one.source, one.weight, one.train_tokens) for one in self.sources]
        return several or ([Share("", 1, self.train_tokens)] if self.train_tokens is not None else [])


class ResolvedTasks(Record):
    """What the tasks turned out to be; the keys of all that asks them rest on it."""

    key: str = Field(description="Key of the artifact with the tasks' definitions and questions.")
    harness: str = Field(description="Version of lm-eval.")
    digests: dict[str, str] = Field(default={}, max_length=MOST_TASKS, description=TASK_DIGESTS)
