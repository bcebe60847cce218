"""What watches the cluster, in a thread and an event loop of its own, and started anew whenever it ends.

kopf ends for good with the first answer that it does not expect: a 401 while keys are rotated, an ERROR event while
etcd has no leader, a CRD that is gone. What is left of it can wait for ever for what never comes, and only its loop
tells its tasks from ours. So it has one of its own, which is thrown away with all that is in it: no pass that is under
way ends with it, and no lease is lost.
"""

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

logger = logging.getLogger(__name__)

RETRY_SECONDS = (1, 1, 2, 3, 5, 8, 13, 21, 30)
"""Pauses between the tries of what is refused or fails; the last one for ever."""

LASTING_SECONDS = 10.0
"""A watch that lives so long once it is open works: what kept the one before it from working is over."""

LEAVING_SECONDS = 1.0
"""Time for a watch to end once it is told to; its thread keeps no process from ending."""

LEFT_SECONDS = 0.5
"""Time of that for what it leaves behind, which may wait for what never comes."""


class Retries:
    """Pauses without an end: after the last one kopf itself would end, and with it the watches of all namespaces."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(RETRY_SECONDS, itertools.repeat(RETRY_SECONDS[-1]))


Watch = Callable[[asyncio.Event, Callable[[], None]], Coroutine[Any, Any, None]]
"""Watches until the event is set, and calls the function once it does watch; made and run in a loop of its own."""


class Health(Protocol):
    """Who is told how the watches are."""

    def watching(self, problem: str | None) -> None:
        """Why nothing is watched just now; None once it is."""
        ...


class _Thread(threading.Thread):
    """One life of a watch. In the loop that made it `opened` is set once it watches, and `ended` resolves to what it
    died of; None: it just ended. By then its own loop is closed: nothing of it speaks after the last words of a process
    that ends.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__(name="watches", daemon=True)
        self._watch = watch
        self._here = asyncio.get_running_loop()
        self._there = asyncio.new_event_loop()
        # What a watch dies of is told once, by whoever starts it anew; not for each task that it leaves behind as well.
        self._there.set_exception_handler(_nobody)
        self._stop = asyncio.Event()
        self.opened = asyncio.Event()
        self.ended: asyncio.Future[BaseException | None] = self._here.create_future()

    def run(self) -> None:
        loop = self._there
        asyncio.set_event_loop(loop)
        died_of: BaseException | None = None
        try:
            loop.run_until_complete(self._watch(self._stop, self._open))
        except BaseException as error:  # told to whoever waits; a thread has nobody else to tell
            died_of = error
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=LEFT_SECONDS))
        loop.close()
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            self._here.call_soon_threadsafe(self._end, died_of)

    def _open(self) -> None:
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            self._here.call_soon_threadsafe(self.opened.set)

    def _end(self, died_of: BaseException | None) -> None:
        if not self.ended.done():
            self.ended.set_result(died_of)

    async def leave(self) -> None:
        """Have it end, and wait a while until it has."""
        with contextlib.suppress(RuntimeError):  # it has, by itself
            self._there.call_soon_threadsafe(self._stop.set)
        await asyncio.wait((self.ended,), timeout=LEAVING_SECONDS)


async def keep_watching(watch: Watch, health: Health, again: asyncio.Event) -> None:
    """Watch until cancelled. Set `again` to have the watch look anew at what there is to be watched."""
    pauses = iter(Retries())
    while True:
        again.clear()
        thread = _Thread(watch)
        thread.start()
        asked = asyncio.create_task(again.wait(), name="watch anew")
        opened = asyncio.create_task(thread.opened.wait(), name="watches open")
        over = (thread.ended, asked)
        try:
            await asyncio.wait((*over, opened), return_when=asyncio.FIRST_COMPLETED)
            if thread.opened.is_set():
                health.watching(None)
                await asyncio.wait(over, timeout=LASTING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not any(end.done() for end in over):
                    pauses = iter(Retries())
                    await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            opened.cancel()
            await thread.leave()
        if again.is_set():
            continue
        pause = next(pauses)
        words = _words(thread.ended.result())
        logger.warning("the watches ended, and are started anew in %g s: %s", pause, words)
        health.watching(f"nothing is watched, which is tried again: {words}")
        await asyncio.sleep(pause)


def _nobody(_: asyncio.AbstractEventLoop, __: dict[str, Any]) -> None:
    """Is told, and tells nobody."""


def _words(died_of: BaseException | None) -> str:
    return f"{type(died_of).__name__}: {died_of}" if died_of is not None else "they ended by themselves"
