"""Which failed passes are news, and which only say once more what the run's status says already. Pure."""

from compression_operator.core.troubles import (
    API_SERVER_UNAVAILABLE,
    CRD_OUTDATED,
    POD_TEMPLATE_REFUSED,
    QUOTA_EXCEEDED,
    REFUSED,
    WEBHOOK_UNAVAILABLE,
    Trouble,
)

WAITS = (QUOTA_EXCEEDED, REFUSED, POD_TEMPLATE_REFUSED, WEBHOOK_UNAVAILABLE, API_SERVER_UNAVAILABLE, CRD_OUTDATED)
"""What to say once, and then no more while it stays as it is."""


class Repeats:
    """What the newest failed pass over each run met with."""

    def __init__(self) -> None:
        self._known: dict[str, Trouble] = {}  # by the run's key

    def waits(self, key: str, trouble: Trouble | None, consecutive: int) -> bool | None:
        """Whether a pass that failed for the `consecutive`-th time in a row only waits, and for something known: True
        the first time, False where that is told already, None where the failure is one.

        A quota that is used up is a wait, whatever its figures. What the API server refuses is a failure, once.
        """
        before = self._known.pop(key, None) if consecutive > 1 else None
        if trouble is None or trouble.reason not in WAITS:
            self._known.pop(key, None)
            return None
        self._known[key] = trouble
        if trouble.reason == QUOTA_EXCEEDED:
            return before is None or before.reason != QUOTA_EXCEEDED
        return False if trouble == before else None

    def forget(self, key: str) -> None:
        """The run is gone."""
        self._known.pop(key, None)
