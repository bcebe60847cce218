"""The queue of keys: nothing lost, nothing handed out twice, what is urgent first."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run

from compression_operator.workqueue import QueueClosed, WorkQueue


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "routine", "get", "done"]), st.sampled_from("abc")), max_size=40))
def test_the_queue_loses_nothing_and_hands_nothing_out_twice(commands: list[tuple[str, str]]) -> None:
    """Against a model: a key asked for since it was last handed out waits, or comes when its worker is done; what is
    urgent comes before what is routine.
    """

    async def scenario() -> None:
        queue = WorkQueue()
        wanted: set[str] = set()
        urgent: set[str] = set()
        active: list[str] = []
        for command, key in commands:
            if command == "add":
                queue.add(key)
                wanted.add(key)
                urgent.add(key)
            elif command == "routine":
                queue.add(key, routine=True)
                wanted.add(key)
            elif command == "get" and wanted - set(active):
                got = await asyncio.wait_for(queue.get(), 1)
                assert got in wanted and got not in active
                assert got in urgent or not urgent - set(active)
                wanted.discard(got)
                urgent.discard(got)
                active.append(got)
            elif command == "done" and active:
                queue.done(active.pop())
            assert len(queue) == len(wanted)
        while active:
            queue.done(active.pop())
        assert {await asyncio.wait_for(queue.get(), 1) for _ in range(len(wanted))} == wanted
        queue.close()
        for _ in range(2):
            with pytest.raises(QueueClosed):
                await queue.get()

    run(scenario())


def test_a_timer_rings_once_at_the_earliest_time_asked_for() -> None:
    async def scenario() -> None:
        queue = WorkQueue()
        loop = asyncio.get_running_loop()
        began = loop.time()
        queue.add_after("a", 30)
        queue.add_after("a", 0.02)
        queue.add_after("a", 40)
        assert await asyncio.wait_for(queue.get(), 5) == "a"
        assert loop.time() - began >= 0.02
        queue.done("a")
        queue.add("a")
        queue.add_after("a", 0.01)
        await queue.get()  # takes the timer with it
        queue.done("a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.1)

    run(scenario())
