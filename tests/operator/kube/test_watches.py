"""What watches the cluster is started anew whenever it ends, and takes nothing of ours with it."""

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable

import pytest
from tests.support.waiting import until_async

from compression_operator.kube.cache import Body
from compression_operator.kube.client import Resource
from compression_operator.kube.watching.kopf_run import RETRY_SECONDS, Retries
from compression_operator.kube.watching.thread import LASTING_SECONDS, keep_watching


class Told:
    """Remembers what it is told of the watches."""

    def __init__(self) -> None:
        self.resources_returned = asyncio.Event()
        self.problems: list[str | None] = []

    def watched(self) -> dict[str | None, list[Resource]]:
        return {}

    def note_event(self, resource: Resource, kind: str | None, body: Body) -> None:
        pass

    def note_watching(self, problem: str | None) -> None:
        self.problems.append(problem)


def pauses(records: list[logging.LogRecord]) -> list[float]:
    return [float(str(record.args[0])) for record in records if isinstance(record.args, tuple)]


def test_a_watch_that_dies_is_started_anew_after_a_pause_and_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression_operator.kube.watching.kopf_run.RETRY_SECONDS", (0.001, 0.002, 0.003))
    told, lives, threads = Told(), itertools.count(1), set[int]()
    enough = threading.Event()

    async def watch(stop: asyncio.Event, opened: Callable[[], None]) -> None:
        threads.add(threading.get_ident())
        # As kopf does in the end: whatever runs in its loop.
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        if next(lives) > 5:
            enough.set()
            await stop.wait()
        raise PermissionError("401")

    async def main() -> str:
        ours = asyncio.create_task(asyncio.sleep(0.05, "untouched"))
        watching = asyncio.create_task(keep_watching(watch, told))
        await until_async(enough.is_set, "enough lives")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        return await ours

    assert asyncio.run(main()) == "untouched"
    assert threading.get_ident() not in threads
    assert told.problems == ["nothing is watched, which is tried again: PermissionError: 401"] * 5
    assert pauses(caplog.records) == [0.001, 0.002, 0.003, 0.003, 0.003]


def test_one_that_does_not_open_is_not_told_to_work_however_long_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """kopf lives on while nothing can be reached, its login fails, or there is no such resource."""
    monkeypatch.setattr("compression_operator.kube.watching.thread.LASTING_SECONDS", 0.01)
    told, tell = Told(), threading.Event()

    async def watch(stop: asyncio.Event, opened: Callable[[], None]) -> None:
        await asyncio.to_thread(tell.wait)
        opened()
        await stop.wait()

    async def main() -> None:
        watching = asyncio.create_task(keep_watching(watch, told))
        await asyncio.sleep(0.2)
        assert not told.problems
        tell.set()
        await until_async(lambda: told.problems, "word of the watch")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())
    assert told.problems == [None]


def test_a_watch_that_lasts_is_told_to_work_and_its_pauses_begin_anew(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression_operator.kube.watching.kopf_run.RETRY_SECONDS", (0.001, 0.002, 0.003))
    monkeypatch.setattr("compression_operator.kube.watching.thread.LASTING_SECONDS", 0.2)
    told, lives = Told(), itertools.count(1)
    die = threading.Event()

    async def watch(stop: asyncio.Event, opened: Callable[[], None]) -> None:
        if next(lives) == 3:
            opened()
            await asyncio.to_thread(die.wait)

    async def main() -> None:
        watching = asyncio.create_task(keep_watching(watch, told))
        await until_async(lambda: None in told.problems, "word that it works")
        await asyncio.sleep(0.5)
        die.set()
        await until_async(lambda: len(told.problems) >= 4, "word of what follows")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())
    words = "nothing is watched, which is tried again: they ended by themselves"
    assert told.problems[:4] == [words, words, None, words]
    assert pauses(caplog.records)[:3] == [0.001, 0.002, 0.001]


def test_the_pauses_begin_anew_too_where_it_lasted_until_there_was_something_new_to_watch(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compression_operator.kube.watching.kopf_run.RETRY_SECONDS", (0.001, 0.002, 0.003))
    monkeypatch.setattr("compression_operator.kube.watching.thread.LASTING_SECONDS", 0.0)
    told, lives = Told(), itertools.count(1)

    async def watch(stop: asyncio.Event, opened: Callable[[], None]) -> None:
        life = next(lives)
        if life == 3:
            opened()
        if life in (3, 5):
            await stop.wait()

    async def main() -> None:
        watching = asyncio.create_task(keep_watching(watch, told))
        await until_async(lambda: None in told.problems, "word that it works")
        told.resources_returned.set()
        await until_async(lambda: len(told.problems) == 4, "the end of the life after it")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())
    assert pauses(caplog.records) == [0.001, 0.002, 0.001]


def test_it_looks_anew_when_asked_to_and_at_once() -> None:
    told, lives = Told(), list[int]()

    async def watch(stop: asyncio.Event, opened: Callable[[], None]) -> None:
        lives.append(1)
        await stop.wait()

    async def main() -> None:
        again = told.resources_returned
        watching = asyncio.create_task(keep_watching(watch, told))
        for life in (1, 2, 3):
            await until_async(lambda life=life: len(lives) >= life, f"life {life}")
            again.set()
        await until_async(lambda: len(lives) >= 4, "the last life")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())
    assert not told.problems


def test_one_that_does_not_leave_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compression_operator.kube.watching.thread.LEAVING_SECONDS", 0.01)
    began, leave = threading.Event(), threading.Event()

    async def watch(stop: asyncio.Event, opened: Callable[[], None]) -> None:
        began.set()
        leave.wait()  # holds its whole loop up

    async def main() -> None:
        watching = asyncio.create_task(keep_watching(watch, Told()))
        await until_async(began.is_set, "it to begin")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())
    assert not leave.is_set()
    leave.set()


def test_what_is_left_of_a_watch_is_over_before_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEAVING_SECONDS", "LEFT_SECONDS"):  # whatever else the machine does meanwhile
        monkeypatch.setattr(f"compression_operator.kube.watching.thread.{name}", 240)
    events: list[str] = []

    async def lingers() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            events.append("left")

    async def watch(stop: asyncio.Event, opened: Callable[[], None]) -> None:
        events.append("began")
        asyncio.create_task(lingers())  # noqa: RUF006 # as kopf does
        await stop.wait()

    async def main() -> None:
        told = Told()
        again = told.resources_returned
        watching = asyncio.create_task(keep_watching(watch, told))
        for life in (1, 2, 3):
            await until_async(lambda life=life: events.count("began") >= life, f"life {life}")
            if life < 3:
                again.set()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(main())
    assert events == ["began", "left"] * 3


def test_the_pauses_never_end() -> None:
    for _ in range(2):  # each request goes through them anew
        first = list(itertools.islice(iter(Retries()), 10_000))
        assert len(first) == 10_000 and first[0] == 1 and max(first) == RETRY_SECONDS[-1] > LASTING_SECONDS
