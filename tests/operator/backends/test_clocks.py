"""The recordings once more, with clocks that differ: none of them need agree with another."""

import copy
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from test_observation import ENDS, NOW, UID, Body, replay, running, states

from compression_operator.backends.observe import SKEW, first_pods, observe_job
from compression_operator.backends.pytorchjob.kind import PYTORCHJOB
from compression_operator.core.jobs import JobState
from compression_pipeline.config import ExitClass

SECONDS = (-5, -3, -2, -1, 1, 2, 3, 5)


def shift(fields: Body, names: tuple[str, ...], seconds: float) -> None:
    for name in names:
        if fields.get(name):
            time = datetime.fromisoformat(fields[name]) + timedelta(seconds=seconds)
            fields[name] = time.strftime("%Y-%m-%dT%H:%M:%SZ")


def training_operator(kind: str, body: Body, seconds: float) -> None:
    if kind == "job":
        shift(body.get("status", {}), ("startTime", "completionTime", "lastReconcileTime"), seconds)
        for condition in body.get("status", {}).get("conditions") or ():
            shift(condition, ("lastTransitionTime", "lastUpdateTime"), seconds)


def api_server(_: str, body: Body, seconds: float) -> None:
    shift(body["metadata"], ("creationTimestamp", "deletionTimestamp"), seconds)


def kubelet(kind: str, body: Body, seconds: float) -> None:
    for container in body["status"].get("containerStatuses") or () if kind == "pod" else ():
        for state in container.get("state", {}).values():
            shift(state, ("startedAt", "finishedAt"), seconds)


def skewed(case: str, clock: Callable[[str, Body, float], None], seconds: float) -> Iterator[Body]:
    for state in states(case):
        state = copy.deepcopy(state)
        clock(state["kind"], state["object"], seconds)
        yield state


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("clock", [training_operator, api_server, kubelet])
def test_a_clock_that_is_off_changes_nothing(clock: Callable[[str, Body, float], None], seconds: float) -> None:
    """Two seconds made a good job look as if its pod had been replaced, and a fault look like an interruption."""

    def ends(sequence: Any) -> set[Any]:
        return {job.ended_as for job in replay(list(sequence))} - {None}

    wrong = {case: ends(skewed(case, clock, seconds)) for case in ENDS}
    assert wrong == {case: {end} - {None} for case, end in ENDS.items()}


def test_a_pod_that_was_made_anew_while_no_operator_ran() -> None:
    """Only its time tells then, and clocks differ."""
    job, pod = running()
    ran = next(c["lastTransitionTime"] for c in job["status"]["conditions"] if c["type"] == "Running")

    def ended_as(made: timedelta) -> ExitClass | None:
        pod["metadata"] |= {"creationTimestamp": (datetime.fromisoformat(ran) + made).isoformat()}
        first = first_pods(PYTORCHJOB, job, [pod], first_pods(PYTORCHJOB, job, [pod], {}))
        return observe_job(PYTORCHJOB, job, [pod], run_uid=UID, now=NOW + made, first=first).ended_as

    assert ended_as(SKEW) is None
    assert ended_as(SKEW + timedelta(seconds=1)) is ExitClass.INTERRUPTED


def test_a_worker_that_a_quota_held_back_is_nobodys_successor() -> None:
    job, master = running()
    worker = copy.deepcopy(master)
    worker["metadata"] |= {"name": "done-worker-0", "uid": "w", "creationTimestamp": "2026-11-21T08:00:00Z"}
    first = first_pods(PYTORCHJOB, job, [master, worker], first_pods(PYTORCHJOB, job, [master], {}))
    assert observe_job(PYTORCHJOB, job, [master, worker], run_uid=UID, now=NOW, first=first).state is JobState.RUNNING
