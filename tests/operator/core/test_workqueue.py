"""The queue of keys: nothing lost, nothing handed out twice, what is urgent first."""

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.waiting import within
from virtual_time import monotonic, run

from compression_operator.core.workqueue import QueueClosed, WorkQueue, share_of_one_namespace

WORKERS = 16


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "routine", "get", "done"]), st.sampled_from("abc")), max_size=40))
def test_the_queue_loses_nothing_and_hands_nothing_out_twice(commands: list[tuple[str, str]]) -> None:
    """Against a model: a key asked for since it was last handed out waits, or comes when its worker is done; what is
    urgent comes before what is routine.
    """

    async def scenario() -> None:
        queue = WorkQueue(WORKERS)
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
                got = await within(queue.get(), "a key", seconds=1)
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
        assert {await within(queue.get(), "a key", seconds=1) for _ in range(len(wanted))} == wanted
        queue.close()
        for _ in range(2):
            with pytest.raises(QueueClosed):
                await queue.get()

    run(scenario())


def test_a_timer_rings_once_at_the_earliest_time_asked_for() -> None:
    async def scenario() -> None:
        queue = WorkQueue(WORKERS)
        loop = asyncio.get_running_loop()
        began = loop.time()
        queue.add_after("a", 30)
        queue.add_after("a", 0.02)
        queue.add_after("a", 40)
        assert await within(queue.get(), "a key", seconds=5) == "a"
        assert loop.time() - began >= 0.02
        queue.done("a")
        queue.add("a")
        queue.add_after("a", 0.01)
        await queue.get()  # takes the timer with it
        queue.done("a")
        with pytest.raises(TimeoutError):
            await within(queue.get(), "nothing", seconds=0.1)

    run(scenario())


KEYS = st.builds("{}/{}".format, st.sampled_from("abc"), st.integers(0, 3))
COMMANDS = st.one_of(
    st.tuples(st.sampled_from(["add", "routine"]), KEYS),
    st.tuples(st.sampled_from(["add", "ask", "ask", "cancel", "done"]), KEYS),
)


def steps(*told: str) -> list[list[tuple[str, str]]]:
    return [[("ask" if key == "ask" else "add", key) for key in step.split()] for step in told]


@settings(max_examples=200)
@example(2, [*steps("ask ask"), [("add", "a/0"), ("cancel", "/0")]])  # of the one that was called
@example(2, [*steps("ask ask", "a/0", "a/0"), [("done", "/0")]])  # with a key that is wanted again
@example(8, [*steps("ask ask ask", "ask ask ask", "a/0 a/1 a/2 b/0 b/1 b/2"), [("done", "/1")]])  # two come to be due
@given(st.integers(1, 8), st.lists(st.lists(COMMANDS, min_size=1, max_size=4), max_size=30))
def test_no_key_waits_for_a_worker_that_waits_for_a_key(workers: int, history: list[list[tuple[str, str]]]) -> None:
    """Whatever comes between: workers that ask and are cancelled, several changes at once, namespaces that have their
    share. None has more workers than its share, and each key has one worker.
    """

    async def scenario() -> None:
        queue = WorkQueue(workers)
        wanted: set[str] = set()
        asking: list[asyncio.Task[str]] = []
        held: list[str] = []
        share = share_of_one_namespace(workers)

        def of(namespace: str) -> int:
            return sum(key.startswith(f"{namespace}/") for key in held)

        async def ask() -> str:
            key = await queue.get()
            assert key in wanted and key not in held and of(key[0]) < share
            wanted.discard(key)
            held.append(key)
            return key

        for step in history:
            for command, key in step:
                if command in ("add", "routine"):
                    queue.add(key, routine=command == "routine")
                    wanted.add(key)
                elif command == "ask" and len(asking) + len(held) < workers:
                    asking.append(asyncio.create_task(ask()))
                elif command == "cancel" and asking:
                    asking[int(key[-1]) % len(asking)].cancel()
                elif command == "done" and held:
                    queue.done(held.pop(int(key[-1]) % len(held)))
            await asyncio.sleep(1)  # in virtual time: until nothing moves any more
            for task in [task for task in asking if task.done()]:
                asking.remove(task)
                assert task.cancelled() or task.result()
            due = [key for key in wanted - set(held) if of(key[0]) < share]
            assert not (asking and due) and len(queue) == len(wanted)
        queue.close()
        ended = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(error, QueueClosed) for error in ended)

    run(scenario())


def served(passes: dict[str, float], keys: dict[str, int], *, workers: int, seconds: float) -> dict[str, list[float]]:
    """Namespaces whose passes take so many seconds, with so many keys, each wanted again at once: when each namespace's
    passes ended.
    """

    async def scenario() -> dict[str, list[float]]:
        queue = WorkQueue(workers)
        ended: dict[str, list[float]] = {namespace: [] for namespace in passes}

        async def work() -> None:
            while True:
                key = await queue.get()
                await asyncio.sleep(passes[key[0]])
                ended[key[0]].append(monotonic())
                queue.add(key)
                queue.done(key)

        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        for namespace in passes:
            for number in range(keys[namespace]):
                queue.add(f"{namespace}/{number}")
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return ended

    return run(scenario())


@given(st.integers(1, 3), st.integers(1, 60), st.integers(0, 60), st.integers(4, 9))
def test_namespaces_whose_passes_take_long_hold_up_no_other(slow: int, keys: int, others: int, workers: int) -> None:
    """Each asks for more than its share before the others ask for anything, and again for ever."""
    stuck = dict.fromkeys("xyz"[:slow], 10.0)
    waiting = dict.fromkeys(stuck, keys + 8)
    ended = served({**stuck, "a": 0.125, "b": 0.125}, {**waiting, "a": 1, "b": others}, workers=workers, seconds=9)
    assert ended["a"][0] == 0.125 and len(ended["a"]) >= 9 / 0.25 - 1, "every second turn, at least, is its own"
    assert all(ended[name] == [] for name in stuck)


@given(st.integers(1, 60), st.integers(1, 8))
def test_a_namespace_that_is_alone_has_a_quarter_of_the_workers(keys: int, workers: int) -> None:
    ended = served({"a": 1.0}, {"a": keys}, workers=workers, seconds=10.5)
    assert len(ended["a"]) == 10 * min(keys, max(1, workers // 4))


def test_namespaces_take_turns() -> None:
    async def scenario() -> None:
        queue = WorkQueue(1)
        for key in ("a/1", "a/2", "a/3", "b/1", "b/2", "c/1"):
            queue.add(key)
        queue.add("b/2", routine=True)
        queue.add("d/1", routine=True)
        queue.add("a/4", routine=True)
        queue.add("a/4")
        order: list[str] = []
        for _ in range(len(queue)):
            order.append(await queue.get())
            queue.done(order[-1])
        assert order == ["a/1", "b/1", "c/1", "a/2", "b/2", "a/3", "a/4", "d/1"]

    run(scenario())
