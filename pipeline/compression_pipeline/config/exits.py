"""How a job ends: the exit classes, their exit codes, and the termination message that carries the reason.

torchrun turns every exit code of a child into 1, so a rank tells its class in a file and the launcher (process 1 of the
job) turns it into the exit code. The operator and the local backend believe the termination message first and the exit
code second.
"""

from enum import StrEnum
from typing import Any

from pydantic import Field

from .base import Record

TERMINATION_MESSAGE_LIMIT = 4096
"""Bytes that Kubernetes keeps of a termination message."""


class ExitClass(StrEnum):
    """What an ended attempt means for the next one."""

    DONE = "Done"
    USER_ERROR = "UserError"  # never retried: only a person can help (bad input, CUDA out of memory, a full disk)
    TRANSIENT = "Transient"  # retried with backoff, counted against retryLimit
    INTERRUPTED = "Interrupted"  # resumed from the newest checkpoint, not counted

    @property
    def code(self) -> int:
        return {"Done": 0, "UserError": 64, "Transient": 75, "Interrupted": 143}[self.value]

    @classmethod
    def of_code(cls, code: int) -> "ExitClass":
        """The class of an exit code; anything unknown counts as a passing fault."""
        return next((c for c in cls if c.code == code), cls.TRANSIENT)


class Termination(Record):
    """The termination message of a job's pod (at most 4 KiB as JSON)."""

    exit_class: ExitClass = Field(alias="class")
    rank: int | None = None
    message: str = ""
    result: dict[str, Any] = Field(default={})
    missing: list[str] = Field(
        default=[],
        description="Artifacts that the job was told of and did not find: whoever makes them must run again.",
    )
