"""What keeps the operator from looking after a run at all, told on the run: a refusal of the API server, a resource
that it does not understand. Pure.

The next pass that goes through writes the conditions anew, so that trouble heals by itself.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from .conditions import FINISHED
from .steps import cut

Json = Mapping[str, Any]

FORBIDDEN = "Forbidden"
QUOTA_EXCEEDED = "QuotaExceeded"
REFUSED = "Refused"
UNREADABLE = "Unreadable"
REASONS = (FORBIDDEN, QUOTA_EXCEEDED, REFUSED, UNREADABLE)

_DENIED = re.compile(
    r'cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)" in API group "[^"]*"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
"""How the API server's authorizers say no."""


@dataclass(frozen=True)
class Trouble:
    """A reason for programs and a sentence for people."""

    reason: str
    message: str


def refusal(code: int, message: str) -> Trouble:
    """What the API server refused, in its words: they name the verb, the resource and the account."""
    if code == 403 and "exceeded quota" in message:
        return Trouble(QUOTA_EXCEEDED, f"the namespace's quota is used up, waiting for room: {message}")
    if code == 403:
        return Trouble(FORBIDDEN, f"{_forbidden(message)}: {message}")
    if code == 404:
        return Trouble(
            REFUSED, f"the API server does not know the resource, is the training operator installed? {message}"
        )
    return Trouble(REFUSED, f"the API server refused what the operator asked for: {message}")


def _forbidden(message: str) -> str:
    """What to do about a 403; where no authorizer speaks, an admission policy does, and it names itself."""
    denied = _DENIED.search(message)
    if denied is None:
        return "the API server forbids what the operator asked for"
    where = f"namespace {denied['namespace']}" if denied["namespace"] else "the whole cluster"
    return (
        f"the operator may not {denied['verb']} {denied['resource']} in {where}: "
        "add this to the Role or ClusterRole of its service account, as the chart's have it"
    )


def told(status: Json, trouble: Trouble, *, generation: int, now: datetime) -> dict[str, Any]:
    """The status (JSON, for it may not be one that can be read) with the trouble in its conditions.

    A run that has finished is what it is; only Degraded says that it is not looked after.
    """
    verdicts = {"Degraded": "True"}
    if status.get("phase") not in FINISHED:
        verdicts |= {"Ready": "False", "Progressing": "False", "Reconciling": "True"}
    before = {str(c.get("type")): c for c in cast(list[Json], status.get("conditions") or ())}
    for kind, verdict in verdicts.items():
        known = before.get(kind, {})
        same = known.get("status") == verdict
        before[kind] = {
            "type": kind,
            "status": verdict,
            "observedGeneration": generation,
            "lastTransitionTime": known["lastTransitionTime"] if same else _stamp(now),
            "reason": trouble.reason,
            "message": cut(trouble.message),
        }
    return {**status, "conditions": list(before.values())}


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
