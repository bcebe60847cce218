"""What keeps the operator from looking after a run at all, told on the run: a refusal of the API server, a resource
that it does not understand. Pure.

The next pass that goes through writes the conditions anew, so that a problem heals by itself.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

from pydantic import ValidationError

from compression_operator.api.job_kinds import JOB_KINDS
from compression_operator.api.run import GROUP, CompressionRun
from compression_operator.api.status import Condition, RunPhase

from .conditions import FINISHED, condition_of, set_condition
from .jobs import Decision, RunEvent
from .steps import cut, seconds

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

BLOCKED = {"Degraded": True, "Ready": False, "Progressing": False, "Reconciling": True}
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
class Problem:
    """A reason for programs and a sentence for people."""

    reason: str
    message: str


def refusal(code: int, message: str, resource: str = "", namespace: str | None = None) -> Problem:
    """What the API server refused, in its words: they name the verb, the resource and the account. Where it does not
    even know the resource they name nothing: `resource` does (<plural>.<group>). An admission plugin does not name the
    namespace.
    """
    if code == 403 and "exceeded quota" in message:
        return Problem(QUOTA_EXCEEDED, f"the namespace's quota is used up, waiting for room: {message}")
    if code == 403:
        return Problem(FORBIDDEN, f"{_forbidden(message, namespace)}: {message}")
    if code == 404:
        return Problem(REFUSED, f"the API server does not know {resource}: {_install(resource) or message}")
    return Problem(REFUSED, f"the API server refused what the operator asked for: {message}")


def unanswered(code: int, message: str) -> Problem:
    """What the API server has failed at for long, in its words. Often it does so for a webhook that does not answer."""
    webhook = _WEBHOOK.search(message)
    if webhook is None:
        what = "has failed at" if code else "has not answered"
        return Problem(
            API_SERVER_UNAVAILABLE, f"the API server {what} what the operator asks for, which keeps trying: {message}"
        )
    whose = next((f"; is {kind.controller} running?" for kind in JOB_KINDS.values() if kind.webhook in webhook[1]), "")
    return Problem(
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


@dataclass(frozen=True)
class Circumstances:
    """What is known of a run beside its spec and its jobs."""

    problem: Problem | None = None  # why jobs cannot be made or deleted
    denied: Sequence[str] = ()  # what the run does without because a permission is missing, a sentence each
    advice: Problem | None = None  # what may go wrong with its storage
    advised: bool = False  # whether an Event of this generation has said so


def add_circumstances(run: CompressionRun, decision: Decision, known: Circumstances, now: datetime) -> Decision:
    """The decision with the circumstances in its conditions, and an Event for each that the status does not tell yet.

    A run that has finished is what it is: of one that goes on the advice stands in Progressing, the rest in Degraded.
    If jobs cannot be made and none goes on, the run is held up.
    """
    report = _Report(run, decision, seconds(now))
    if decision.status.phase not in FINISHED:
        if known.advice is not None:
            report.add_advice(known.advice, known.advised)
        if known.denied:
            report.add_denials(known.denied)
    if known.problem is not None:
        report.add_problem(known.problem)
    if not report.changed:
        return decision
    status = decision.status.model_copy(update={"conditions": report.conditions})
    return replace(decision, status=status, events=(*decision.events, *report.events))


class _Report:
    """Conditions and Events that change by what is told of a run."""

    def __init__(self, run: CompressionRun, decision: Decision, now: datetime) -> None:
        self.conditions = decision.status.conditions
        self.events: list[RunEvent] = []
        self.changed = False
        self._run = run
        self._decision = decision
        self._now = now

    def add_advice(self, advice: Problem, advised: bool) -> None:
        progressing, stored = _of_type(self.conditions, "Progressing"), _of_type(self._stored, "Progressing")
        if progressing is None:
            return
        message = f"{progressing.message}; note that {advice.message}"
        self._set("Progressing", progressing.status == "True", progressing.reason, message)
        same_generation = self._run.status.observed_generation == self._run.metadata.generation
        if not advised and not (same_generation and stored is not None and advice.message in stored.message):
            self.events.append(RunEvent("Warning", advice.reason, advice.message))

    def add_denials(self, denied: Sequence[str]) -> None:
        degraded, stored = _of_type(self.conditions, "Degraded"), _of_type(self._stored, "Degraded")
        worse = degraded is not None and degraded.status == "True"
        reason = degraded.reason if degraded is not None and worse else FORBIDDEN
        self._set("Degraded", True, reason, "; ".join([*filter(None, [degraded and degraded.message]), *denied]))
        known = stored.message if stored is not None else ""
        self.events += [RunEvent("Warning", FORBIDDEN, sentence) for sentence in denied if sentence not in known]

    def add_problem(self, problem: Problem) -> None:
        degraded, stored = _of_type(self.conditions, "Degraded"), _of_type(self._stored, "Degraded")
        status, message = self._decision.status, cut(problem.message)
        if status.phase not in FINISHED and not any(step.state.active for step in status.steps):
            for kind, holds in BLOCKED.items():
                self._set(kind, holds, problem.reason, message)
        worse = degraded is not None and degraded.status == "True"
        # Whole, because what was cut off would be told anew in each pass.
        both = f"{message}; {degraded.message}" if degraded is not None and worse else message
        self._set("Degraded", True, problem.reason, both)
        if stored is None or stored.reason != problem.reason or message not in stored.message:
            self.events.append(RunEvent("Warning", problem.reason, problem.message))

    @property
    def _stored(self) -> Sequence[Condition]:
        return self._run.status.conditions

    def _set(self, kind: str, holds: bool, reason: str, message: str) -> None:
        generation = self._run.metadata.generation
        found = condition_of(kind, holds, reason, message, generation=generation, now=self._now)
        self.conditions = set_condition(self.conditions, found, stored=self._stored)
        self.changed = True


def with_problem(status: Json, problem: Problem, *, generation: int, now: datetime) -> dict[str, Any]:
    """The status (JSON, because it may not be one that can be read) with the problem in its conditions.

    A run that has finished is what it is; only Degraded says that it is not looked after.
    """
    stored = {str(c.get("type")): c for c in cast(list[Json], status.get("conditions") or ())}
    kinds = {"Degraded": True} if status.get("phase") in FINISHED else BLOCKED
    conditions = dict(stored)
    for kind, holds in kinds.items():
        found = condition_of(kind, holds, problem.reason, cut(problem.message), generation=generation, now=seconds(now))
        conditions[kind] = set_condition(_readable(stored.get(kind)), found)[-1].to_json()
    return {"phase": RunPhase.PENDING.value, **status, "conditions": list(conditions.values())}


def _readable(condition: Json | None) -> list[Condition]:
    try:
        return [] if condition is None else [Condition.model_validate(condition)]
    except ValidationError:
        return []


def _of_type(conditions: Sequence[Condition], kind: str) -> Condition | None:
    return next((condition for condition in conditions if condition.type == kind), None)
