"""Kubernetes Events on CompressionRuns, aggregated: what repeats becomes one Event with a count."""

import hashlib
import logging
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from compression_operator.api.run import API_VERSION, KIND, ObjectMeta
from compression_operator.core.jobs import RunEvent
from compression_operator.kube.client import EVENTS, ApiError, Body, Kube
from compression_operator.kube.denied_permissions import Denials

logger = logging.getLogger(__name__)

REMEMBERED = 1024
"""Events whose repetitions are recognised; the longest unused is forgotten first."""

WINDOW = timedelta(minutes=10)
"""Time since an Event was last told within which its repetition counts it up, instead of making a new one."""

NOTE_LIMIT = 1024
"""Bytes that the API server takes in an Event's note."""


_Kind = tuple[str, str, str, str | None, str]


@dataclass
class _Series:
    name: str
    count: int
    last: datetime


class EventRecorder:
    """Writes Events. What cannot be written is logged: an Event is never worth failing for."""

    def __init__(
        self,
        kube: Kube,
        *,
        instance: str,
        now: Callable[[], datetime],
        denials: Denials,
    ) -> None:
        self._kube = kube
        self._denials = denials
        self._instance = instance
        self._now = now
        self._series: OrderedDict[_Kind, _Series] = OrderedDict()

    async def record(self, about: ObjectMeta, event: RunEvent) -> None:
        """Write a new Event about a run, or count one up that was written within the window."""
        now, key = self._now(), _kind(about, event)
        known = self._series.pop(key, None)
        try:
            if known is not None and now - known.last < WINDOW:
                known.count, known.last = known.count + 1, now
                with self._denials.note_denial(about.namespace, "Events that repeat are not counted"):
                    await self._kube.patch(EVENTS, about.namespace, known.name, _repetition(known))
            else:
                body = _event(about, event, self._instance, now)
                known = _Series(body["metadata"]["name"], 1, now)
                with self._denials.note_denial(about.namespace, "no Events are written"):
                    await self._kube.create(EVENTS, about.namespace, body)
        except ApiError as error:
            if error.code == 404:  # the Event has expired, or the namespace is going
                return
            logger.warning("cannot write the event %s: %s", event.reason, error)
            return
        self._series[key] = known
        while len(self._series) > REMEMBERED:
            self._series.popitem(last=False)


def _kind(about: ObjectMeta, event: RunEvent) -> _Kind:
    """What makes two Events the same: numbers (times, attempts) may differ, what they are about may not."""
    return about.uid, event.type, event.reason, event.step, re.sub(r"\d+", "#", event.message)


def _stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _repetition(series: _Series) -> Body:
    return {"series": {"count": series.count, "lastObservedTime": _stamp(series.last)}}


def _event(meta: ObjectMeta, event: RunEvent, instance: str, now: datetime) -> Body:
    """A new events.k8s.io/v1 Event. Its name is made from what it says and when."""
    digest = hashlib.sha256(f"{meta.uid}/{event}/{now.isoformat()}".encode()).hexdigest()[:16]
    return {
        "apiVersion": EVENTS.api_version,
        "kind": "Event",
        "metadata": {"name": f"{meta.name[:200].rstrip('-.')}.{digest}", "namespace": meta.namespace},
        "eventTime": _stamp(now),
        "reportingController": "modelcompression.io/compression-operator",
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "type": event.type,
        "reason": event.reason,
        "note": event.message.encode()[:NOTE_LIMIT].decode(errors="ignore"),
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
        },
    }
