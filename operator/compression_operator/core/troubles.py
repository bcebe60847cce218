"""What keeps the operator from looking after a run at all, told on the run: a refusal of the API server, a resource
that it does not understand. Pure.

The next pass that goes through writes the conditions anew, so that trouble heals by itself.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

from compression_operator.api.job_kinds import JOB_KINDS
from compression_operator.api.run import GROUP, CompressionRun
from compression_operator.api.status import CompressionRunStatus, RunPhase

from .conditions import FINISHED
from .jobs import Decision, Notice
from .steps import cut

Json = Mapping[str, Any]

FORBIDDEN = "Forbidden"
QUOTA_EXCEEDED = "QuotaExceeded"
REFUSED = "Refused"
POD_TEMPLATE_REFUSED = "PodTemplateRefused"
UNREADABLE = "Unreadable"
INTERNAL_ERROR = "InternalError"
WEBHOOK_UNAVAILABLE = "WebhookUnavailable"
API_SERVER_UNAVAILABLE = "APIServerUnavailable"
CRD_OUTDATED = "CRDOutdated"
REASONS = (
    *(FORBIDDEN, QUOTA_EXCEEDED, REFUSED, POD_TEMPLATE_REFUSED, UNREADABLE, INTERNAL_ERROR),
    *(WEBHOOK_UNAVAILABLE, API_SERVER_UNAVAILABLE, CRD_OUTDATED),
)

HELD_UP = {"Degraded": "True", "Ready": "False", "Progressing": "False", "Reconciling": "True"}
"""Conditions of a run that nothing is done for."""

INSTALL_RUNS = "install the CRD with `kubectl apply -f crds/`, or with the chart (crds.install)"

_DENIED = re.compile(
    r'cannot (?P<verb>\S+) resource "(?P<resource>[^"]+)" in API group "[^"]*"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
"""How the API server's authorizers say no."""

_NO_BLOCKING = "cannot set blockOwnerDeletion"
_WEBHOOK = re.compile(r'failed calling webhook "([^"]+)"')


@dataclass(frozen=True)
class Trouble:
    """A reason for programs and a sentence for people."""

    reason: str
    message: str


def refusal(code: int, message: str, resource: str = "", namespace: str | None = None) -> Trouble:
    """What the API server refused, in its words: they name the verb, the resource and the account. Where it does not
    even know the resource they name nothing: `resource` does (<plural>.<group>). An admission plugin does not name the
    namespace.
    """
    if code == 403 and "exceeded quota" in message:
        return Trouble(QUOTA_EXCEEDED, f"the namespace's quota is used up, waiting for room: {message}")
    if code == 403:
        return Trouble(FORBIDDEN, f"{_forbidden(message, namespace)}: {message}")
    if code == 404:
        return Trouble(REFUSED, f"the API server does not know {resource}: {_install(resource) or message}")
    return Trouble(REFUSED, f"the API server refused what the operator asked for: {message}")


def unanswered(code: int, message: str) -> Trouble:
    """What the API server has failed at for long, in its words. Often it does so for a webhook that does not answer."""
    webhook = _WEBHOOK.search(message)
    if webhook is None:
        what = "has failed at" if code else "has not answered"
        return Trouble(
            API_SERVER_UNAVAILABLE, f"the API server {what} what the operator asks for, which keeps trying: {message}"
        )
    whose = next((f"; is {kind.controller} running?" for kind in JOB_KINDS.values() if kind.webhook in webhook[1]), "")
    return Trouble(
        WEBHOOK_UNAVAILABLE,
        f"the admission webhook {webhook[1]} does not answer, so nothing that it is to judge can be written{whose}: "
        f"{message}",
    )


def blocks_no_deletion(error: Exception) -> bool:
    """Whether a job is refused because the operator may not have a run's deletion wait for it."""
    return _NO_BLOCKING in str(error)


def _install(resource: str) -> str | None:
    """What to do where the cluster does not have the resource."""
    hints = {f"compressionruns.{GROUP}": INSTALL_RUNS} | {kind.resource: kind.install for kind in JOB_KINDS.values()}
    return hints.get(resource)


def _forbidden(message: str, namespace: str | None) -> str:
    """What to do about a 403; where no authorizer speaks, an admission policy does, and it names itself."""
    denied = _DENIED.search(message)
    if denied is not None:
        verb, resource, namespace = denied["verb"], denied["resource"], denied["namespace"]
    elif _NO_BLOCKING in message:
        verb, resource = "update", "compressionruns/finalizers"
    else:
        return "the API server forbids what the operator asked for"
    return (
        f"the operator may not {verb} {resource} in {f'namespace {namespace}' if namespace else 'the whole cluster'}: "
        "add this to the Role or ClusterRole of its service account, as the chart's have it"
    )


def held_up(run: CompressionRun, decision: Decision, trouble: Trouble, now: datetime) -> Decision:
    """The decision with the trouble that jobs could not be made or deleted for in its conditions; told once.

    While other jobs of the run go on it is under way, and degraded. One that has finished is what it is.
    """
    status, before = decision.status.to_json(), _by_type(run.status.to_json())
    worse = _by_type(status).get("Degraded", {})
    both = f"{trouble.message}; {worse['message']}" if worse.get("status") == "True" else trouble.message
    goes_on = any(step.state.active for step in decision.status.steps)
    kinds = () if goes_on or decision.status.phase in FINISHED else tuple(HELD_UP)
    after = _with(status, trouble, kinds, before, generation=run.metadata.generation, now=now)
    degraded = Trouble(trouble.reason, both)
    after = _with(after, degraded, ("Degraded",), before, generation=run.metadata.generation, now=now)
    known = before.get("Degraded", {})
    news = known.get("reason") != trouble.reason or cut(trouble.message) not in known.get("message", "")
    notices = (*decision.notices, *([Notice("Warning", trouble.reason, trouble.message)] if news else ()))
    return replace(decision, status=CompressionRunStatus.model_validate(after), notices=notices)


def told(status: Json, trouble: Trouble, *, generation: int, now: datetime) -> dict[str, Any]:
    """The status (JSON, for it may not be one that can be read) with the trouble in its conditions.

    A run that has finished is what it is; only Degraded says that it is not looked after.
    """
    kinds = ("Degraded",) if status.get("phase") in FINISHED else tuple(HELD_UP)
    return _with(status, trouble, kinds, _by_type(status), generation=generation, now=now)


def _by_type(status: Json) -> dict[str, Json]:
    return {str(c.get("type")): c for c in cast(list[Json], status.get("conditions") or ())}


def _with(
    status: Json,
    trouble: Trouble,
    kinds: tuple[str, ...],
    stored: Mapping[str, Json],
    *,
    generation: int,
    now: datetime,
) -> dict[str, Any]:
    """The status with the trouble in conditions of these kinds, whose times stand where those `stored` say the same."""
    conditions = _by_type(status)
    for kind in kinds:
        known, verdict = stored.get(kind, {}), HELD_UP[kind]
        same = known.get("status") == verdict
        conditions[kind] = {
            "type": kind,
            "status": verdict,
            "observedGeneration": generation,
            "lastTransitionTime": known["lastTransitionTime"] if same else _stamp(now),
            "reason": trouble.reason,
            "message": cut(trouble.message),
        }
    return {"phase": RunPhase.PENDING.value, **status, "conditions": list(conditions.values())}


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
