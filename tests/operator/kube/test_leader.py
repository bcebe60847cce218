"""The lease, by its pure half and against a server of one object: never two leaders, whatever the clocks say."""

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.waiting import within
from virtual_time import monotonic, run

from compression_operator.kube import leader as leader_module
from compression_operator.kube.client import ApiError
from compression_operator.kube.leader import LeaderElection, LeadershipLost, Observation, Timing, claimed, may_take

TIME = datetime(2026, 11, 1, tzinfo=UTC)
Lease = dict[str, Any]


def lease(holder: str = "", version: str = "1", duration: int = 10) -> Lease:
    spec = {"holderIdentity": holder, "leaseDurationSeconds": duration, "leaseTransitions": 3}
    return {"metadata": {"resourceVersion": version}, "spec": spec}


def test_a_free_lease_and_ones_own_may_be_taken() -> None:
    assert may_take(lease(""), "a", Observation(), 0.0) and may_take(lease("a"), "a", Observation(), 0.0)
    assert may_take({"metadata": {"resourceVersion": "1"}}, "a", Observation(), 0.0), "nobody has ever held it"


def test_another_ones_may_be_taken_once_it_has_not_changed_for_its_duration() -> None:
    seen = Observation()
    seen.see(lease("b"), 100.0)
    assert not may_take(lease("b"), "a", seen, 110.0) and may_take(lease("b"), "a", seen, 110.1)
    seen.see(lease("b", "2"), 109.0)
    assert not may_take(lease("b", "2"), "a", seen, 118.0)


@given(st.sampled_from(["", "a", "b"]), st.sampled_from(["a", "b"]))
def test_transitions_are_counted(before: str, after: str) -> None:
    spec = claimed(lease(before), after, 10, TIME)["spec"]
    assert spec["leaseTransitions"] == 3 + (before != after) and spec["holderIdentity"] == after
    assert claimed({"metadata": {}}, after, 10, TIME)["spec"]["leaseTransitions"] == 0


class Server:
    """A server of one lease; what it is told to, it fails."""

    def __init__(self) -> None:
        self.lease: Lease | None = None
        self.fault: ApiError | None = None
        self.hangs = False
        self.meddlers: list[str] = []  # who is the holder after the next reads: each is followed by somebody's write

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.sleep(3600)
        if self.fault:
            raise self.fault

    async def get(self, *_: Any) -> Lease:
        await self._answer()
        if self.lease is None:
            raise ApiError(404, "NotFound", "")
        found = self.lease
        if self.meddlers:
            self.lease = lease(self.meddlers.pop(0), str(int(found["metadata"]["resourceVersion"]) + 1))
        return found

    async def create(self, _resource: Any, _namespace: str, body: Lease) -> Lease:
        await self._answer()
        if self.lease is not None:
            raise ApiError(409, "AlreadyExists", "")
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}
        return self.lease

    async def replace(self, _resource: Any, _namespace: str, _name: str, body: Lease) -> Lease:
        await self._answer()
        assert self.lease is not None
        version = self.lease["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise ApiError(409, "Conflict", "")
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(int(version) + 1)}}
        return self.lease


class Wire:
    """One candidate's way to the server: each answer takes a while, and some never come."""

    def __init__(self, server: Server, seconds: float) -> None:
        self._server = server
        self._seconds = seconds
        self.asked = 0
        self.lost: set[int] = set()  # numbers of requests without an answer
        self.done = False  # these are done all the same

    async def get(self, *args: Any) -> Lease:
        return await self._through(self._server.get, args)

    async def create(self, *args: Any) -> Lease:
        return await self._through(self._server.create, args)

    async def replace(self, *args: Any) -> Lease:
        return await self._through(self._server.replace, args)

    async def _through(self, ask: Callable[..., Awaitable[Lease]], args: tuple[Any, ...]) -> Lease:
        lost, self.asked = self.asked in self.lost, self.asked + 1
        await asyncio.sleep(self._seconds / 2)
        if lost and not self.done:
            await asyncio.sleep(3600)
        answer = await ask(*args)
        await asyncio.sleep(3600 if lost else self._seconds / 2)
        return answer


FAST = Timing(duration=1, renew=0.4, retry=0.05, request=0.05)


def candidate(server: Server | Wire, name: str, clock: Any = monotonic, timing: Timing = FAST) -> LeaderElection:
    return LeaderElection(server, "ns", "lease", name, timing=timing, monotonic=clock)  # type: ignore[arg-type] # a stand-in


def test_one_leads_and_the_next_takes_over_at_once_when_it_lets_go() -> None:
    async def scenario() -> None:
        server = Server()
        first, second = candidate(server, "a"), candidate(server, "b")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        holding = asyncio.create_task(first.hold())
        await asyncio.sleep(1.3)
        assert first.leads and not second.leads and not waiting.done(), "it is renewed"
        holding.cancel()
        await first.release()
        assert not first.leads
        await within(waiting, "the second to lead", seconds=0.5)
        assert second.leads
        await first.release()
        assert server.lease is not None and server.lease["spec"]["holderIdentity"] == "b", (
            "what is not held is not freed"
        )

    run(scenario())


def test_one_that_dies_is_replaced_after_the_duration() -> None:
    async def scenario() -> None:
        server = Server()
        await candidate(server, "a").acquire()
        began = asyncio.get_running_loop().time()
        await within(candidate(server, "b").acquire(), "b to lead", seconds=5)
        assert asyncio.get_running_loop().time() - began >= 1.0

    run(scenario())


@given(start=st.floats(0, 2), lost=st.integers(0, 9), done=st.booleans())
def test_a_request_without_an_answer_does_not_keep_a_follower_from_leading_within_15_seconds(
    start: float, lost: int, done: bool
) -> None:
    """Whichever request it is, and whenever the follower looks."""

    async def scenario() -> None:
        server = Server()
        wire = Wire(server, 0.3)
        leader, follower = candidate(server, "a", timing=Timing()), candidate(wire, "b", timing=Timing())
        await leader.acquire()
        holding = asyncio.create_task(leader.hold())
        await asyncio.sleep(start)
        acquiring = asyncio.create_task(follower.acquire())
        await asyncio.sleep(4.001 - start)  # it was renewed at 2 and at 4
        holding.cancel()
        assert server.lease is not None and server.lease["metadata"]["resourceVersion"] == "3" and leader.leads
        wire.lost, wire.done = {wire.asked + lost}, done
        await acquiring
        assert asyncio.get_running_loop().time() <= 4 + 15
        assert follower.leads and not leader.leads

    run(scenario())


@given(first=st.integers(0, 6), count=st.integers(1, 2), done=st.booleans())
def test_requests_without_an_answer_cost_a_leader_nothing(first: int, count: int, done: bool) -> None:
    async def scenario() -> None:
        wire = Wire(Server(), 0.3)
        leader = candidate(wire, "a", timing=Timing())
        await leader.acquire()
        holding = asyncio.create_task(leader.hold())
        wire.lost, wire.done = {wire.asked + first + number for number in range(count)}, done
        await asyncio.sleep(30)
        assert leader.leads and not holding.done() and wire.asked > 15
        holding.cancel()

    run(scenario())


@pytest.mark.parametrize(
    "fault", [ApiError(0, "Unreachable", "no answer"), ApiError(503, "", "busy"), "hangs", "taken"]
)
def test_a_lease_that_cannot_be_renewed_is_lost_in_time(fault: Any) -> None:
    async def scenario() -> None:
        server = Server()
        leader = candidate(server, "a")
        await leader.acquire()
        began = asyncio.get_running_loop().time()
        if fault == "hangs":
            server.hangs = True
        elif fault == "taken":
            assert server.lease is not None
            server.lease = claimed(server.lease, "b", 1, TIME) | {"metadata": {"resourceVersion": "9"}}
        else:
            server.fault = fault
        with pytest.raises(LeadershipLost):
            await within(leader.hold(), "the lease to be lost", seconds=5)
        assert not leader.leads and asyncio.get_running_loop().time() - began < 1.0

    run(scenario())


def test_a_fault_that_passes_costs_nothing() -> None:
    async def scenario() -> None:
        server = Server()
        leader = candidate(server, "a")
        await leader.acquire()
        server.fault = ApiError(503, "", "busy")
        holding = asyncio.create_task(leader.hold())
        await asyncio.sleep(0.2)
        server.fault = None
        await asyncio.sleep(0.6)
        assert leader.leads and not holding.done()
        holding.cancel()

    run(scenario())


def test_an_edit_of_the_lease_by_anybody_deposes_nobody() -> None:
    async def scenario() -> None:
        server = Server()
        leader = candidate(server, "a")
        await leader.acquire()
        holding = asyncio.create_task(leader.hold())
        server.meddlers = ["a"] * 3
        await asyncio.sleep(0.8)
        assert not server.meddlers and not holding.done() and leader.leads
        server.meddlers = ["b"]
        with pytest.raises(LeadershipLost, match="another replica holds it"):
            await within(holding, "the lease to be lost", seconds=5)

    run(scenario())


@pytest.mark.parametrize(("meddler", "left"), [("a", ""), ("b", "b")])
def test_an_edited_lease_is_given_up_if_it_is_still_ours(meddler: str, left: str) -> None:
    async def scenario() -> None:
        server = Server()
        leader = candidate(server, "a")
        await leader.acquire()
        server.meddlers = [meddler]
        await server.get()
        await leader.release()
        assert server.lease is not None and server.lease["spec"]["holderIdentity"] == left

    run(scenario())


def test_giving_up_the_lease_is_given_up_where_the_server_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_module, "RELEASE_SECONDS", 0.1)

    async def scenario() -> None:
        server = Server()
        leader = candidate(server, "a")
        await leader.acquire()
        server.hangs = True
        await within(leader.release(), "the lease to be released", seconds=5)
        assert not leader.leads

    run(scenario())


def test_one_that_was_stopped_for_a_while_knows_that_it_may_not_write() -> None:
    async def scenario() -> None:
        now = 0.0
        leader = candidate(Server(), "a", lambda: now)
        await leader.acquire()
        assert leader.leads
        now = 0.99
        assert leader.leads
        now = 1.0
        assert not leader.leads

    run(scenario())


def test_a_candidate_that_may_not_write_the_lease_says_so_until_it_may() -> None:
    async def scenario() -> None:
        server = Server()
        words = 'User "x" cannot create resource "leases" in API group "coordination.k8s.io" in the namespace "ns"'
        server.fault = ApiError(403, "Forbidden", words)
        waiting = candidate(server, "a")
        acquiring = asyncio.create_task(waiting.acquire())
        await asyncio.sleep(0.2)
        assert waiting.problem is not None and "may not create leases in namespace ns" in waiting.problem
        server.fault = ApiError(503, "", "busy")
        await asyncio.sleep(0.2)
        assert waiting.problem is None, "that passes by itself"
        server.fault = None
        await within(acquiring, "it to lead", seconds=5)
        assert waiting.leads and waiting.problem is None

    run(scenario())


def test_why_a_lease_was_lost_is_told_though_the_last_try_hangs() -> None:
    async def scenario() -> None:
        server = Server()
        leader = candidate(server, "a")
        await leader.acquire()
        server.fault = ApiError(403, "Forbidden", "no")
        holding = asyncio.create_task(leader.hold())
        await asyncio.sleep(0.15)
        server.hangs = True
        with pytest.raises(LeadershipLost, match="forbids what the operator asked for: no"):
            await within(holding, "the lease to be lost", seconds=5)

    run(scenario())


def test_an_answer_that_came_while_the_process_was_held_up_counts() -> None:
    """As by a busy machine: the answer lies in the socket's buffer, and its time is over once anybody looks."""

    async def main() -> dict[str, Any]:
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=here)

        async def request() -> dict[str, Any]:
            return json.loads(await reader.readline())

        def held_up() -> None:
            there.sendall(b'{"kind": "Lease"}\n')
            time.sleep(0.4)

        unused: Any = None
        election = LeaderElection(unused, "ns", "lease", "me", timing=Timing(request=0.2))
        asyncio.get_running_loop().call_later(0.01, held_up)
        try:
            return await election._answer(request())
        finally:
            writer.close()
            there.close()

    assert asyncio.run(main()) == {"kind": "Lease"}
