"""Which installation of the operator looks after a run, where several watch one namespace. Pure.

The first one that looks at a run writes its name into the status, and every other one leaves the run alone: two would
write what each of them knows over what the other one does, without end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from compression_operator.api.status import CompressionRunStatus

from .jobs import RunEvent


@dataclass(frozen=True)
class Manager:
    """An installation, with all its replicas."""

    name: str  # namespace and name of its lease
    takes_over: tuple[str, ...] = ()  # installations that are gone, whose runs are this one's

    def other(self, run: Mapping[str, Any]) -> str | None:
        """The other installation that looks after a run (JSON, because it may not be one that can be read)."""
        found = cast(Mapping[str, Any], run.get("status") or {}).get("managedBy")
        return None if found in (None, "", self.name, *self.takes_over) else str(found)

    def claimed(self, status: CompressionRunStatus) -> CompressionRunStatus:
        """The status of a run that is this one's from now on."""
        return status.model_copy(update={"managed_by": self.name})

    def left_alone(self, other: str, *, waits: bool) -> RunEvent:
        """What to tell of a run that is another one's; `waits`: it is unfinished, for ever where that one is gone."""
        how = f"if that installation no longer exists, add it to the chart's takeOver ({other})"
        kind = "Warning" if waits else "Normal"
        return RunEvent(kind, "ManagedElsewhere", f"{other} looks after this run, {self.name} leaves it alone; {how}")
