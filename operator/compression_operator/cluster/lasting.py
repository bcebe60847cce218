"""Errors that pass by themselves, and do not: what a run is told of once it has met with nothing else for a minute."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from compression_operator.core.troubles import Trouble, unanswered
from compression_operator.kube.client import ApiError

from .failures import trouble_of

PATIENCE = timedelta(seconds=60)
"""Time for which the API server, or a webhook that it asks, may be away: an upgrade of it takes no longer."""


@dataclass
class _Series:
    since: datetime
    trouble: Trouble | None = None  # as it was first told: its words may change with every try
    told: bool = False


class Lasting:
    """Of each run the passes in a row that failed for what should have passed by itself."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._series: dict[str, _Series] = {}  # by the run's key

    def trouble(self, key: str, error: Exception) -> Trouble | None:
        """What to tell on the run of an error: at once what will not go away, the rest once it has lasted."""
        if not isinstance(error, ApiError) or not error.passing or error.namespace_gone:
            return trouble_of(error)
        series = self._series.setdefault(key, _Series(self._now()))
        if series.trouble is None and self._now() - series.since >= PATIENCE:
            series.trouble = unanswered(error.code, str(error))
        return series.trouble

    def first(self, key: str) -> bool:
        """Whether the trouble is asked for here for the first time: it may be that no status can tell it."""
        series = self._series.get(key)
        if series is None or series.trouble is None or series.told:
            return False
        series.told = True
        return True

    def over(self, key: str) -> None:
        """A pass over the run met with no such error."""
        self._series.pop(key, None)
