"""Why the pods of a job are not made: in the API server's words, which the job's controller leaves in an Event.

A controller tries again after pauses that double (the training operator's up to a quarter of an hour), so that a job
would wait for as long again as the problem lasted. A change of the job has it try at once: the operator makes one,
of an annotation, as long as pods are missing.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from compression_operator.api.run import GROUP
from compression_operator.backends.kind import JobKind
from compression_operator.core.jobs import Decision, ObservedJob, WaitReason
from compression_operator.kube.client import EVENTS, ApiError, Kube
from compression_operator.kube.denied_permissions import Denials

from .fields import EMPTY, mapping
from .podview import CATCH_UP

logger = logging.getLogger(__name__)

LOOK = timedelta(seconds=10)
"""Between two looks at a job that lacks pods, and before the first one. So pods come as soon after the mending as what
else a job may wait for.
"""

TRIED_AGAIN = f"{GROUP}/pods-asked-again"
"""Annotation of jobs: when the operator last had its controller try again."""


class PodRefusals:
    """Asks, at a bounded rate, why pods are not made, and has them asked for again."""

    def __init__(self, kube: Kube, denials: Denials) -> None:
        self._kube = kube
        self._denials = denials
        self._asked: dict[str, tuple[datetime, str]] = {}  # by UID of the job: when, and what was said

    async def explain_wait(
        self, job: ObservedJob, kind: JobKind, namespace: str, uid: str, now: datetime
    ) -> ObservedJob:
        """Ask why pods of the job are not made, and return the job with the answer in what it waits for. An answer that
        cannot be had holds nothing up.
        """
        waiting = job.waiting
        if not _lacks_pods(job) or waiting is None:
            self.forget(uid)
            return job
        if now < waiting.told_from - CATCH_UP + LOOK:
            return job
        asked, words = self._asked.get(uid, (None, ""))
        if asked is None or now - asked >= LOOK:
            words = await self._creation_failure(kind, namespace, job.name, uid) or words
            self._asked[uid] = now, words
            await self._ask_again(kind, namespace, job.name, now)
        if not words:
            return job
        message = f"{waiting.message.partition(': ')[0]}: {words}"
        told = replace(waiting, message=message, told_from=min(waiting.told_from, now))
        return replace(job, message=message, waiting=told)

    def forget(self, uid: str) -> None:
        """The job has its pods, or is gone."""
        self._asked.pop(uid, None)

    async def _creation_failure(self, kind: JobKind, namespace: str, name: str, uid: str) -> str:
        try:
            with self._denials.note_denial(namespace, "the status does not say why pods of a job cannot be created"):
                events = await self._kube.list(EVENTS, namespace, fields=kind.event_fields(name))
        except ApiError as error:
            logger.debug("cannot read the events of job %s: %s", name, error)
            return ""
        return kind.explain(refusal(events.items, uid if kind.events_regard_job else None))

    async def _ask_again(self, kind: JobKind, namespace: str, name: str, now: datetime) -> None:
        body = {"metadata": {"annotations": {TRIED_AGAIN: f"{now:%Y-%m-%dT%H:%M:%SZ}"}}}
        try:
            with self._denials.note_denial(namespace, "pods that could not be made are not asked for again at once"):
                await self._kube.patch(kind.resource, namespace, name, body)
        except ApiError as error:
            logger.debug("cannot have the pods of job %s asked for again: %s", name, error)


def refusal(events: Iterable[Mapping[str, Any]], uid: str | None) -> str:
    """What the newest Event says of why a pod was refused, of those of the object with the UID where one is given;
    empty where none does. Pure.
    """
    own = [event for event in events if uid in (None, mapping(event, "regarding").get("uid"))]
    newest = max(own, key=_last_occurrence, default=EMPTY)
    return re.sub(r"^Error creating: ", "", str(newest.get("note") or "")).strip()


def with_early_recheck(decision: Decision, observed: Iterable[ObservedJob]) -> Decision:
    """The decision with another look soon, where a job lacks pods: no watch tells why. Pure."""
    if not any(map(_lacks_pods, observed)):
        return decision
    soon = LOOK.total_seconds()
    again = decision.look_again_seconds
    return replace(decision, look_again_seconds=soon if again is None else min(soon, again))


def _lacks_pods(job: ObservedJob) -> bool:
    return job.ours and job.waiting is not None and job.waiting.reason is WaitReason.PODS_NOT_CREATED


def _last_occurrence(event: Mapping[str, Any]) -> str:
    """When it last happened, in a form that sorts: RFC 3339, to the second."""
    last = mapping(event, "series").get("lastObservedTime")
    times = (last, event.get("deprecatedLastTimestamp"), event.get("eventTime"))
    return max(str(time or "")[:19] for time in (*times, mapping(event, "metadata").get("creationTimestamp")))
