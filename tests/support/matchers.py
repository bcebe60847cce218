"""What tests say of a run's status: `assert has_condition(world, "Ready", "True")`.

Each matcher takes whatever has a status: a world, a run, a decision, a status, or the JSON of one. An assertion that
fails, and an `until` that gives up, show what there is instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.alias_generators import to_camel

from compression_operator.api.status import Step

Body = Mapping[str, Any]
SAYS = "says"


class Match:
    """Whether something matches: true or false. Its representation says what was wanted, and what there is."""

    def __init__(self, wanted: str, there: Sequence[str], matches: bool) -> None:
        self._matches = matches
        self._told = f"{wanted}; there is {', '.join(there) or 'nothing'}"

    def __bool__(self) -> bool:
        return self._matches

    def __repr__(self) -> str:
        return self._told


def has_condition(
    of: Any,
    kind: str,
    status: str | None = None,
    *,
    reason: str | None = None,
    message: str | None = None,
    says: str | None = None,
) -> Match:
    """Whether there is this condition; `says`: words in its message."""
    given = {"status": status, "reason": reason, "message": message, SAYS: says}
    wanted = {field: value for field, value in given.items() if value is not None}
    conditions = {one["type"]: one for one in status_of(of).get("conditions") or ()}
    shown = [f"{name} {one['status']} ({one.get('reason')}: {one.get('message')})" for name, one in conditions.items()]
    return Match(f"condition {kind} {_words(wanted)}", shown, kind in conditions and _fits(conditions[kind], wanted))


def has_step(of: Any, name: str, **wanted: Any) -> Match:
    """Whether there is this step; its fields in snake_case, and `says`: words in its message."""
    unknown = wanted.keys() - Step.model_fields.keys() - {SAYS}
    assert not unknown, f"a step has no field {', '.join(unknown)}"  # it would be as good as empty
    wanted = {to_camel(field): value for field, value in wanted.items()}
    steps = {one["name"]: one for one in status_of(of).get("steps") or ()}
    found = steps.get(name)
    shown = [f"step {name}: {dict(found)}"] if found else [f"step {one}" for one in steps]
    return Match(f"step {name} {_words(wanted)}", shown, found is not None and _fits(found, wanted))


def verdicts(of: Any) -> dict[str, tuple[str, str]]:
    """Status and reason of every condition."""
    return {one["type"]: (one["status"], one["reason"]) for one in status_of(of).get("conditions") or ()}


def status_of(of: Any) -> Body:
    """The status as JSON."""
    if isinstance(of, Mapping):
        return of.get("status") or ({} if "spec" in of else of)
    status = getattr(of, "status", of)
    if isinstance(status, Mapping):
        return status
    assert isinstance(status, BaseModel), f"{of!r} has no status"
    return status.model_dump(mode="json", by_alias=True)


def _fits(found: Body, wanted: Body) -> bool:
    return all(
        value in found.get("message", "") if field == SAYS else _same(found.get(field), value)
        for field, value in wanted.items()
    )


def _same(there: Any, value: Any) -> bool:
    """A count of 0 and an empty text are not written."""
    return there == value or not (there or value)


def _words(wanted: Body) -> str:
    return f"with {', '.join(f'{field} {value!r}' for field, value in wanted.items())}" if wanted else "of any kind"
