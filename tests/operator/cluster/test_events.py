"""Kubernetes Events: what repeats is counted, and what cannot be written harms nobody."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from local_jobs import a_run

from compression_operator.cluster.events import NOTE_LIMIT, REMEMBERED, EventRecorder
from compression_operator.core.jobs import RunEvent
from compression_operator.kube.client import ApiError
from compression_operator.kube.denied_permissions import Denials

START = datetime(2026, 11, 1, tzinfo=UTC)


class Recorded:
    """A recorder, a clock, and what it wrote."""

    def __init__(self) -> None:
        self.now = START
        self.created: list[dict[str, Any]] = []
        self.patched: list[tuple[str, dict[str, Any]]] = []
        self.fault: ApiError | None = None
        self.changed: list[str] = []
        self.denials = Denials(self.changed.append)
        self.recorder = EventRecorder(
            self,  # type: ignore[arg-type] # a stand-in
            instance="operator-0",
            now=lambda: self.now,
            denials=self.denials,
        )

    async def create(self, _resource: Any, _namespace: str, body: dict[str, Any]) -> None:
        if self.fault:
            raise self.fault
        self.created.append(body)

    async def patch(self, _resource: Any, _namespace: str, name: str, body: dict[str, Any]) -> None:
        if self.fault:
            raise self.fault
        self.patched.append((name, body))

    def tell(self, message: str, *, step: str | None = None, after: float = 1, reason: str = "StepRetrying") -> None:
        self.now += timedelta(seconds=after)
        asyncio.run(self.recorder.record(a_run().metadata, RunEvent("Warning", reason, message, step)))


def test_what_repeats_is_counted_in_one_event() -> None:
    world = Recorded()
    for attempt in range(1, 5):
        world.tell(
            f"distill-width, attempt {attempt}: the link broke; again at 12:0{attempt}:00 UTC", step="distill-width"
        )
    assert len(world.created) == 1 and [body["series"]["count"] for _, body in world.patched] == [2, 3, 4]
    assert {name for name, _ in world.patched} == {world.created[0]["metadata"]["name"]}


def test_what_is_about_something_else_is_another_event() -> None:
    world = Recorded()
    world.tell("a1 broke", step="prune-a1")
    world.tell("a2 broke", step="prune-a2")
    world.tell("a2 broke", step="prune-a2", reason="StepFailed")
    world.tell("a2 burnt", step="prune-a2")
    assert len(world.created) == 4 and not world.patched


def test_after_a_while_it_is_told_anew() -> None:
    world = Recorded()
    world.tell("x")
    world.tell("x", after=700)
    assert len(world.created) == 2 and len({body["metadata"]["name"] for body in world.created}) == 2


@pytest.mark.parametrize("code", [403, 404, 0, 503])
def test_what_cannot_be_written_harms_nobody(code: int) -> None:
    world = Recorded()
    world.fault = ApiError(code, "", "no")
    world.tell("x")
    world.fault = None
    world.tell("x")
    assert len(world.created) == 1 and not world.patched


def test_an_event_fits_the_api_servers_limits() -> None:
    world = Recorded()
    world.tell("ä" * 3000)
    body = world.created[0]
    assert len(body["note"].encode()) <= NOTE_LIMIT and body["note"].startswith("ääää")
    assert body["regarding"]["uid"] == a_run().metadata.uid and body["regarding"]["kind"] == "CompressionRun"


def test_memory_is_bounded() -> None:
    world = Recorded()
    for number in range(REMEMBERED + 10):
        world.tell("x", step=f"step-{number}", after=0)
    world.tell("x", step="step-0", after=0)
    world.tell("x", step=f"step-{REMEMBERED + 9}", after=0)
    assert len(world.created) == REMEMBERED + 11 and len(world.patched) == 1
