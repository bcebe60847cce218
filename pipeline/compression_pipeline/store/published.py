"""`published.json`: which artifact a step made, where that is not named by the step's fingerprint."""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from compression_pipeline.config.schemes import scheme_of
from compression_pipeline.config.schemes.hub import HubScheme

from .watched import Watched


class _Record(BaseModel):
    # Written by this version or a later one: what is unknown is left alone.
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class Asked(_Record):
    """A source on a server, as it was when somebody asked."""

    scheme: str = Field(default=HubScheme.prefix, description="Prefix of its kind; earlier versions knew one alone.")
    endpoint: str
    revision: str | None = Field(description="What was asked for.")
    commit: str | None = Field(description="What that was.")

    def stands(self, environment: Mapping[str, str] = os.environ) -> bool:
        """Whether the answer would be the same: only a commit never moves, and only where it is asked at one place."""
        pinned = self.revision is not None and scheme_of(self.scheme).fixed(self.revision)
        return pinned and self.revision == self.commit and self.at(environment)

    def at(self, environment: Mapping[str, str] = os.environ) -> bool:
        """Whether it would be asked at the same place now."""
        return self.endpoint == scheme_of(self.scheme).address(environment)


class Published(_Record):
    """The artifact that a step made whose key was not known before it ran, or is not its fingerprint."""

    artifact: str
    watched: list[Watched] = Field(default=[], description="What it was made from, of local files.")
    asked: list[Asked] = Field(default=[], description="What it was made from, of servers.")
    result: dict[str, Any] = Field(default={}, description="What the step told otherwise than the one that made it.")

    @property
    def stands(self) -> bool:
        """Whether the step would find the same again, as far as that can be told without asking anybody."""
        return all(asked.stands() for asked in self.asked) and all(found.unchanged() for found in self.watched)

    @property
    def may_stand(self) -> bool:
        """Whether the step would find the same again, unless a branch or a tag has moved."""
        return all(asked.at() for asked in self.asked) and all(found.unchanged() for found in self.watched)
