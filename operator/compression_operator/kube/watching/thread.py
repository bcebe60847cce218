"""Each life of kopf in a thread and an event loop of its own. See the folder's docstring."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from .kopf_run import Listener, Retries

logger = logging.getLogger(__name__)

LASTING_SECONDS = 10.0
"""A watch that was open for so long worked: what kept the one before it from working is over."""

LEAVING_SECONDS = 1.0
"""Time for a watch to end once it is told to; its thread keeps no process from ending."""

LEFT_SECONDS = 0.5
"""Time of that for what it leaves behind, which may wait for what never comes."""

Watch = Callable[[asyncio.Event, Callable[[], None]], Coroutine[Any, Any, None]]
"""Watches until the event is set, and calls the function once it does watch; made and run in a loop of its own."""


class _Life(threading.Thread):
    """One life of a watch. In the loop that made it `opened` is called once it watches, and `ended` resolves to what it
    died of; None: it just ended. By then its own loop is closed: nothing of it speaks after the last words of a process
    that ends.
    """

    def __init__(self, watch: Watch, opened: Callable[[], None]) -> None:
        super().__init__(name="watches", daemon=True)
        self._watch = watch
        self._opened = opened
        self._here = asyncio.get_running_loop()
        self._there = asyncio.new_event_loop()
        # What a watch dies of is told once, by whoever starts it anew; not for each task that it leaves behind as well.
        self._there.set_exception_handler(lambda _, __: None)
        self._stop = asyncio.Event()
        self._open_since: float | None = None
        self._leaving = False
        self.ended: asyncio.Future[BaseException | None] = self._here.create_future()

    def run(self) -> None:
        loop = self._there
        asyncio.set_event_loop(loop)
        died_of: BaseException | None = None
        try:
            loop.run_until_complete(self._watch(self._stop, lambda: self._call_in_listeners_loop(self._note_open)))
        except BaseException as error:  # told to whoever waits; a thread has nobody else to tell
            died_of = error
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=LEFT_SECONDS))
        loop.close()
        self._call_in_listeners_loop(self._note_end, died_of)

    @property
    def lasted(self) -> bool:
        """Whether it was open for LASTING_SECONDS."""
        return self._open_since is not None and time.monotonic() - self._open_since >= LASTING_SECONDS

    def _call_in_listeners_loop(self, note: Callable[..., None], *what: object) -> None:
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            self._here.call_soon_threadsafe(note, *what)

    def _note_open(self) -> None:
        if self._open_since is None and not self._leaving:
            self._open_since = time.monotonic()
            self._opened()

    def _note_end(self, died_of: BaseException | None) -> None:
        if not self.ended.done():
            self.ended.set_result(died_of)

    async def leave(self) -> None:
        """Have it end, and wait a while until it has."""
        self._leaving = True
        with contextlib.suppress(RuntimeError):  # it has, by itself
            self._there.call_soon_threadsafe(self._stop.set)
        await asyncio.wait((self.ended,), timeout=LEAVING_SECONDS)


async def keep_watching(watch: Watch, listener: Listener) -> None:
    """Watch until cancelled, one life after the other."""
    pauses, again = iter(Retries()), listener.resources_returned
    while True:
        again.clear()
        life = _Life(watch, lambda: listener.note_watching(None))
        life.start()
        asked = asyncio.create_task(again.wait(), name="watch anew")
        try:
            await asyncio.wait((life.ended, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            await life.leave()
        if life.lasted:
            pauses = iter(Retries())
        if again.is_set():
            continue
        pause, died_of = next(pauses), life.ended.result()
        words = f"{type(died_of).__name__}: {died_of}" if died_of is not None else "they ended by themselves"
        logger.warning("the watches ended and restart in %g s: %s", pause, words)
        listener.note_watching(f"nothing is watched, which is tried again: {words}")
        await asyncio.sleep(pause)
