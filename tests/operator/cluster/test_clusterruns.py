"""Runs as the controller wants them: what is remembered of them."""

import asyncio
import gc
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
import pytest
from http_server import Answer, served
from local_jobs import a_run

from compression_operator.api.run import CPU, NOTED, RETRY_ANNOTATION
from compression_operator.api.status import CompressionRunStatus
from compression_operator.cluster.metrics import Metrics
from compression_operator.cluster.runs import ClusterRuns, parse
from compression_operator.core.controller import Conflict
from compression_operator.core.jobs import RunEvent
from compression_operator.core.managers import Manager
from compression_operator.kube.cache import Cache
from compression_operator.kube.client import Kube


def test_runs_that_cannot_be_read_are_counted_apart() -> None:
    """E.g. of a newer version, after a downgrade."""
    body: dict[str, Any] = a_run().to_json()
    body["metadata"] |= {"uid": "u", "resourceVersion": "1", "generation": 1}
    newer = {**body, "metadata": {**body["metadata"], "name": "newer", "uid": "v"}}
    newer["spec"] = {**body["spec"], "teacher": {"model": 7}}
    cache = Cache(lambda _: None)
    kube = Kube(lambda: kopf.ConnectionInfo(server="http://127.0.0.1:1"))
    runs = ClusterRuns(kube, cache, image="an-image")
    metrics = Metrics(runs.readable, lambda: 0, lambda: True, per_run=False, unreadable=runs.unreadable)
    for known, found in ((body, 0), (newer, 1)):
        cache.put(known)
        assert metrics.registry.get_sample_value("compression_runs_unreadable") == found
    assert metrics.registry.get_sample_value("compression_runs", {"phase": "Pending"}) == 1


def test_of_the_answer_to_a_write_nothing_is_kept_that_is_not_read() -> None:
    """managedFields are the larger half of a run."""
    body: dict[str, Any] = a_run().to_json()
    body["metadata"] |= {"uid": "u", "resourceVersion": "1", "generation": 1}
    told: list[tuple[CompressionRunStatus, CompressionRunStatus]] = []
    fields = [{"manager": "compression-operator", "fieldsV1": {"f:marker": {}}}]
    answer = body | {"metadata": body["metadata"] | {"resourceVersion": "2", "managedFields": fields}}
    key = f"{body['metadata']['namespace']}/{body['metadata']['name']}"

    async def scenario(url: str) -> None:
        kube, cache = Kube(lambda: kopf.ConnectionInfo(server=url)), Cache(lambda _: None)
        runs = ClusterRuns(kube, cache, image="an-image", written=lambda *pair: told.append(pair))
        cache.put(body)
        run = await runs.get(key)
        assert run is not None
        written = await runs.write_status(run, run.status)
        assert written.metadata.resource_version == "2" and await runs.get(key) is written
        assert told == [(run.status, run.status)]
        fields.clear()
        gc.collect()
        assert not [found for found in gc.get_objects() if isinstance(found, dict) and "f:marker" in found]
        await kube.close()

    with served() as (server, url):
        server.answer = lambda *_: (200, answer, {})
        asyncio.run(scenario(url))


def test_a_run_that_somebody_wrote_first_is_read_again_and_then_written() -> None:
    body: dict[str, Any] = a_run().to_json()
    body["metadata"] |= {"uid": "u", "resourceVersion": "500", "generation": 1}
    stored = body | {"metadata": body["metadata"] | {"resourceVersion": "1000"}}
    key = f"{body['metadata']['namespace']}/{body['metadata']['name']}"

    async def scenario(url: str) -> None:
        kube, cache = Kube(lambda: kopf.ConnectionInfo(server=url)), Cache(lambda _: None)
        runs = ClusterRuns(kube, cache, image="an-image")
        cache.put(body)
        run = await runs.get(key)
        assert run is not None
        with pytest.raises(Conflict):
            await runs.write_status(run, run.status)
        again = await runs.get(key)
        assert again is not None and again.metadata.resource_version == "1000"
        await runs.write_status(again, again.status)
        await kube.close()

    with served() as (server, url):

        def answer(method: str, path: str) -> Answer:
            sent = server.asked[-1][2]
            if method == "PUT" and sent["metadata"]["resourceVersion"] != "1000":
                return 409, {"kind": "Status", "reason": "Conflict", "message": "the object has been modified"}, {}
            return 200, stored, {}

        server.answer = answer
        asyncio.run(scenario(url))


@pytest.mark.parametrize(("phase", "told"), [("Distilling", ["Warning", "Warning"]), ("Succeeded", ["Normal"])])
def test_a_run_that_waits_for_another_installation_is_told_of_again_and_again(phase: str, told: list[str]) -> None:
    """That one may be gone for good, and an Event expires after an hour."""
    body: dict[str, Any] = a_run().to_json()
    body["metadata"] |= {"uid": "u", "resourceVersion": "1", "generation": 1}
    body["status"] = {"phase": phase, "managedBy": "ops/gone"}
    cache, clock = Cache(lambda _: None), datetime(2026, 1, 1, tzinfo=UTC)
    cache.put(body)
    heard: list[RunEvent] = []

    async def scenario() -> None:
        nonlocal clock
        runs = ClusterRuns(
            Kube(lambda: kopf.ConnectionInfo(server="http://127.0.0.1:1")),
            cache,
            image="an-image",
            manager=Manager("ops/here"),
            left_alone=lambda _, event: heard.append(event),
            now=lambda: clock,
        )
        for minutes in (0, 1, 58, 1, 1):  # an hour and a minute
            clock += timedelta(minutes=minutes)
            assert await runs.get(f"{body['metadata']['namespace']}/{body['metadata']['name']}") is None

    asyncio.run(scenario())
    assert [event.type for event in heard] == told
    assert all(event.reason == "ManagedElsewhere" and "takeOver (ops/gone)" in event.message for event in heard)


def test_what_local_runs_note_of_their_machine_says_nothing_on_a_cluster() -> None:
    """Weights in float32 were made under the key of bfloat16."""
    body: dict[str, Any] = a_run().to_json()
    body["metadata"]["annotations"] = {**dict.fromkeys(NOTED, CPU), RETRY_ANNOTATION: "again"}
    assert parse(body).metadata.annotations == {RETRY_ANNOTATION: "again"}
