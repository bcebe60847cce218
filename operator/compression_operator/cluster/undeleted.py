"""Jobs that could not be deleted, and why, for as long as they are to go. Pure.

The status is written before a job goes, so what keeps it from going is told by the next pass, and by each one from then
on: a pass that did not know would write that all is well, and have it taken back a moment later.
"""

from collections.abc import Callable, Mapping

from compression_operator.core.jobs import Decision, DeleteJob
from compression_operator.core.troubles import Trouble

from .failures import trouble_of


class Undeleted:
    """What the newest pass over each run could not delete."""

    def __init__(
        self, trouble: Callable[[str, Exception], Trouble | None] = lambda _, error: trouble_of(error)
    ) -> None:
        """`trouble`: what to tell on the run with this key of an error."""
        self._trouble = trouble
        self._why: dict[str, dict[str, Trouble]] = {}  # by the run's key, then by the job's name

    def note(self, key: str, errors: Mapping[str, Exception]) -> None:
        """A pass went through, and these jobs of it could not be deleted. An error that may pass by itself, e.g.
        no answer, says nothing of what was refused before.
        """
        before = self._why.pop(key, {})
        found = {name: self._trouble(key, error) or before.get(name) for name, error in errors.items()}
        why = {name: trouble for name, trouble in found.items() if trouble is not None}
        if why:
            self._why[key] = why

    def about(self, key: str, decision: Decision) -> list[Trouble]:
        """What is known to stand in the way of the deletions that are decided, in their order."""
        why = self._why.get(key, {})
        names = [action.name for action in decision.actions if isinstance(action, DeleteJob)]
        return [why[name] for name in names if name in why]
