"""What is counted when a run goes on, and what only the leader tells."""

import asyncio
from datetime import timedelta
from typing import Any

import kopf
import pytest
from http_server import served
from jobs_world import World

from compression_operator.api.attempts import Progress
from compression_operator.api.run import CompressionRun
from compression_operator.cluster.metrics import Metrics
from compression_operator.core.jobs import JobState
from compression_operator.kube.client import RUNS, ApiError, Kube
from compression_pipeline.config import ExitClass


class Scraped:
    """Metrics of one run's world."""

    def __init__(self, *, leads: bool = True, per_run: bool = True) -> None:
        self.world = World()
        self.runs: list[CompressionRun] = [self.world.run]
        self.metrics = Metrics(lambda: self.runs, lambda: 3, lambda: leads, per_run=per_run)

    def look(self) -> None:
        before = self.world.status
        self.world.look()
        self.runs = [self.world.run]
        self.metrics.written(before, self.world.status)

    def value(self, name: str, **labels: Any) -> float | None:
        return self.metrics.registry.get_sample_value(name, {k: str(v) for k, v in labels.items()})


def test_a_run_by_phase_and_its_steps_by_state() -> None:
    scraped = Scraped()
    scraped.look()
    assert (
        scraped.value("compression_runs", phase="Pending") == 1
        or scraped.value("compression_runs", phase="Preparing") == 1
    )
    assert scraped.value("compression_runs", phase="Failed") == 0, "also phases that no run is in"
    assert scraped.value("compression_steps", phase="prepare", state="Starting") == 1
    assert scraped.value("compression_steps", phase="prune", state="Pending") == 2
    assert scraped.value("compression_queue_depth") == 3 and scraped.value("compression_leader") == 1


def test_only_the_leader_tells_of_runs() -> None:
    scraped = Scraped(leads=False)
    scraped.look()
    assert scraped.value("compression_runs", phase="Pending") is None and scraped.value("compression_leader") == 0
    assert scraped.value("compression_queue_depth") == 3


def test_durations_and_retries_are_counted_once() -> None:
    scraped = Scraped()
    scraped.look()
    (name,) = scraped.world.jobs
    scraped.world.start(name)
    scraped.look()
    scraped.world.fail(name, ExitClass.TRANSIENT)
    for _ in range(3):
        scraped.look()
    assert scraped.value("compression_step_retries_total", phase="prepare", reason="Transient") == 1
    scraped.world.pass_time(60)
    scraped.look()
    name = next(name for name, truth in scraped.world.jobs.items() if truth.seen.state is JobState.PENDING)
    scraped.world.start(name)
    scraped.world.pass_time(timedelta(minutes=7).total_seconds())
    scraped.look()
    scraped.world.succeed(name)
    for _ in range(3):
        scraped.look()
    labels = {"phase": "prepare", "outcome": "Succeeded"}
    assert scraped.value("compression_step_duration_seconds_count", **labels) == 1
    assert 400 <= (scraped.value("compression_step_duration_seconds_sum", **labels) or 0) <= 440


def test_what_happened_before_a_restart_is_not_counted_again() -> None:
    scraped = Scraped()
    scraped.world.drive()
    scraped.look()
    assert b"compression_step_duration_seconds_count{" not in scraped.metrics.exposition()


def test_a_new_leader_counts_what_ended_during_the_takeover() -> None:
    """The pass that tells of it is its first one over the run."""
    scraped = Scraped()
    scraped.look()
    (name,) = scraped.world.jobs
    scraped.world.start(name)
    scraped.look()
    scraped.world.succeed(name)
    successor = scraped.metrics = Metrics(lambda: scraped.runs, lambda: 0, lambda: True, per_run=True)
    scraped.look()
    labels = {"phase": "prepare", "outcome": "Succeeded"}
    assert successor.registry.get_sample_value("compression_step_duration_seconds_count", labels) == 1


def running_at(step: int, total: int) -> CompressionRun:
    run = World().run
    world = World()
    world.look()
    (name,) = world.jobs
    world.start(name)
    world.look()
    steps = [
        s.model_copy(update={"progress": Progress(step=step, total_steps=total, loss=3.5)})
        if s.state == "Running"
        else s
        for s in world.status.steps
    ]
    return run.model_copy(update={"status": world.status.model_copy(update={"steps": steps})})


def test_progress_of_each_run_is_a_setting() -> None:
    run = running_at(25, 100)
    labels = {"namespace": "default", "run": "demo", "step": "prepare"}
    for per_run in (True, False):
        metrics = Metrics(lambda: [run], lambda: 0, lambda: True, per_run=per_run)
        expected = (0.25, 3.5) if per_run else (None, None)
        found = [metrics.registry.get_sample_value(f"compression_run_{n}", labels) for n in ("progress_ratio", "loss")]
        assert tuple(found) == expected
    empty = running_at(0, 0)
    metrics = Metrics(lambda: [empty], lambda: 0, lambda: True, per_run=True)
    assert metrics.registry.get_sample_value("compression_run_progress_ratio", labels) == 0


@pytest.mark.parametrize("code", [401, 403, 429])
def test_that_a_watch_would_be_refused_is_counted(code: int) -> None:
    """kopf's own requests are not: each resync asks in their place."""
    scraped = Scraped()

    async def scenario(url: str) -> None:
        kube = Kube(lambda: kopf.ConnectionInfo(server=url), on_request=scraped.metrics.request)
        with pytest.raises(ApiError):
            await kube.watchable(RUNS)
        await kube.close()

    with served() as (server, url):
        server.answer = lambda *_: (code, {}, {})
        asyncio.run(scenario(url))
    assert scraped.value("compression_api_requests_total", verb="watch", code=code) == 1


def test_requests_are_counted_by_verb_and_code() -> None:
    scraped = Scraped()
    for code in (201, 201, 0):
        scraped.metrics.request("create", code, 0.02)
    assert scraped.value("compression_api_requests_total", verb="create", code=201) == 2
    assert scraped.value("compression_api_requests_total", verb="create", code=0) == 1
    assert scraped.value("compression_api_request_duration_seconds_count", verb="create") == 3
