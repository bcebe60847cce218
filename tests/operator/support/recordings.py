"""Recordings of what a real cluster told of jobs and pods (tests/cluster_tests/record.py), and their replay."""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compression_operator.backends.observe import FirstPods, first_pods, observe_job
from compression_operator.backends.pytorchjob.kind import PYTORCHJOB
from compression_operator.core.jobs import ObservedJob

Body = dict[str, Any]

RECORDED = Path(__file__).parents[1] / "recorded"
UID = "11111111-2222-3333-4444-555555555555"


def states(case: str) -> list[Body]:
    return json.loads((RECORDED / f"{case}.json").read_text())


class Seen:
    """What two watches have told so far, and the newest time in it."""

    def __init__(self) -> None:
        self.job: Body | None = None
        self.pods: dict[str, Body] = {}
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.first: FirstPods = {}

    def take(self, state: Body) -> None:
        body = state["object"]
        for text in re.findall(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", json.dumps(body)):
            # A deletionTimestamp lies ahead, by the grace period.
            if text != body["metadata"].get("deletionTimestamp"):
                self.now = max(self.now, datetime.fromisoformat(text))
        if state["kind"] == "job":
            self.job = None if state["event"] == "DELETED" else body
        elif state["event"] == "DELETED":
            self.pods.pop(body["metadata"]["uid"], None)
        else:
            self.pods[body["metadata"]["uid"]] = body

    def look(self, later: timedelta = timedelta(0), missed: datetime | None = None) -> ObservedJob | None:
        if self.job is None:
            return None
        pods = list(self.pods.values())
        self.first = first_pods(PYTORCHJOB, self.job, pods, self.first)
        return observe_job(
            PYTORCHJOB, self.job, pods, run_uid=UID, now=self.now + later, first=self.first, missed=missed
        )


def replay(sequence: Sequence[Body]) -> Iterator[ObservedJob]:
    seen = Seen()
    for state in sequence:
        if state["kind"] == "job" and state["event"] == "DELETED":
            return
        seen.take(state)
        job = seen.look()
        if job is not None:
            yield job
