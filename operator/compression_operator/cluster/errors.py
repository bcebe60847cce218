"""What passes over runs met with: what is told on the run, and what is news for the operator's log. No I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from compression_operator.api.templates import TemplateRefused
from compression_operator.core.jobs import Decision, DeleteJob
from compression_operator.core.problems import (
    API_SERVER_UNAVAILABLE,
    CRD_OUTDATED,
    INTERNAL_ERROR,
    POD_TEMPLATE_REFUSED,
    QUOTA_EXCEEDED,
    REFUSED,
    WEBHOOK_UNAVAILABLE,
    Problem,
    refusal,
    unanswered,
)
from compression_operator.kube.client import ApiError, NotLeading

from .runs import UnreadableRun
from .served_schema import OutdatedCRD

PATIENCE = timedelta(seconds=60)
"""Time for which the API server, or a webhook that it asks, may be away: an upgrade of it takes no longer."""

REPEATED = (QUOTA_EXCEEDED, REFUSED, POD_TEMPLATE_REFUSED, WEBHOOK_UNAVAILABLE, API_SERVER_UNAVAILABLE, CRD_OUTDATED)
"""What is logged once, and then no more while it stays as it is."""

PERSISTENT = 3
"""Failures in a row after which an error that nobody foresaw is told: one may be a race that the next pass wins."""


def problem_of(error: Exception) -> Problem | None:
    """What to tell on the run; None where it is likely to go away by itself, or is no fault of the run's."""
    if isinstance(error, UnreadableRun | OutdatedCRD):
        return error.problem
    if isinstance(error, ApiError):
        return None if error.transient or error.namespace_gone else refusal(error.code, str(error), error.resource)
    if isinstance(error, TemplateRefused):
        return Problem(POD_TEMPLATE_REFUSED, str(error))
    if isinstance(error, NotLeading):
        return None
    return Problem(
        INTERNAL_ERROR,
        "a bug in the operator, which keeps trying: please report it with the traceback in the "
        f"operator's log at 'pass failed', and the manifest of this run. {_named(error)}",
    )


def is_internal(error: Exception) -> bool:
    """Whether it is a fault of the operator's own."""
    return not isinstance(error, ApiError | UnreadableRun | OutdatedCRD | TemplateRefused | NotLeading)


def creation_failure(error: Exception) -> str:
    """Why a job cannot be made, in words that stay the same while the reason does: each change is written."""
    problem = problem_of(error)
    if problem is not None:
        return _named(error) if is_internal(error) else problem.message
    return "the API server does not answer" if isinstance(error, ApiError) and error.code == 0 else str(error)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class FailedPass(Enum):
    """What a failed pass is to the log."""

    ERROR = auto()  # counted as an error of the operator
    WAIT = auto()  # the run waits for something, e.g. room in a quota
    STILL_THE_SAME = auto()  # said before


@dataclass
class _Outage:
    """Passes in a row over one run that failed for what should have passed by itself."""

    since: datetime
    problem: Problem | None = None  # as it was first told: its words may change with every try
    reported: bool = False


class RunErrors:
    """What the newest passes over each run met with, by the run's key."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._outages: dict[str, _Outage] = {}
        self._newest: dict[str, Problem] = {}
        self._failed_deletions: dict[str, dict[str, Problem]] = {}  # by the job's name

    def problem(self, key: str, error: Exception) -> Problem | None:
        """What to tell on the run of an error: at once what will not go away, the rest once it has lasted."""
        if not isinstance(error, ApiError) or not error.transient or error.namespace_gone:
            return problem_of(error)
        outage = self._outages.setdefault(key, _Outage(self._now()))
        if outage.problem is None and self._now() - outage.since >= PATIENCE:
            outage.problem = unanswered(error.code, str(error))
        return outage.problem

    def note_reported(self, key: str) -> bool:
        """Note that the outage is told; whether that is for the first time, because perhaps no status can tell it."""
        outage = self._outages.get(key)
        if outage is None or outage.problem is None or outage.reported:
            return False
        outage.reported = True
        return True

    def end_outage(self, key: str) -> None:
        """Note that a pass over the run met with nothing that passes by itself."""
        self._outages.pop(key, None)

    def classify(self, key: str, problem: Problem | None, consecutive: int) -> FailedPass:
        """Note what a pass met with that failed for the `consecutive`-th time in a row; what that is to the log.

        A quota that is used up is a wait, whatever its figures. What the API server refuses is an error, once.
        """
        before = self._newest.pop(key, None) if consecutive > 1 else None
        if problem is None or problem.reason not in REPEATED:
            self._newest.pop(key, None)
            return FailedPass.ERROR
        self._newest[key] = problem
        if problem.reason == QUOTA_EXCEEDED:
            waits_already = before is not None and before.reason == QUOTA_EXCEEDED
            return FailedPass.STILL_THE_SAME if waits_already else FailedPass.WAIT
        return FailedPass.STILL_THE_SAME if problem == before else FailedPass.ERROR

    def note_failed_deletions(self, key: str, errors: Mapping[str, Exception]) -> None:
        """Note the jobs, by name, that a pass could not delete. An error that may pass by itself, e.g. no answer, says
        nothing of what was refused before.

        The status is written before a job goes, so what keeps it from going is told by the next pass, and by each one
        from then on: a pass that did not know would write that all is well, and have it taken back a moment later.
        """
        before = self._failed_deletions.pop(key, {})
        found = {name: self.problem(key, error) or before.get(name) for name, error in errors.items()}
        why = {name: problem for name, problem in found.items() if problem is not None}
        if why:
            self._failed_deletions[key] = why

    def failed_deletions(self, key: str, decision: Decision) -> list[Problem]:
        """What is known to prevent the deletions that are decided, in their order."""
        why = self._failed_deletions.get(key, {})
        names = [action.name for action in decision.actions if isinstance(action, DeleteJob)]
        return [why[name] for name in names if name in why]

    def forget(self, key: str) -> None:
        """Forget a run that is gone."""
        for known in (self._outages, self._newest, self._failed_deletions):
            known.pop(key, None)
