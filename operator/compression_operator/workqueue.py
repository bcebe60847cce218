"""A queue of keys for level-triggered work: adding says "look at this again", never what happened."""

import asyncio
from itertools import count

URGENT, ROUTINE, CLOSED = 1, 2, 0
"""What goes first; among equals, what came first."""


class QueueClosed(Exception):
    """The queue was closed and hands out no more keys."""


class WorkQueue:
    """Keys to look at, each handed to one worker at a time.

    A key added while a worker has it is handed out again once that worker is done; a key added several times before it
    is handed out counts once. Not thread-safe: one event loop.
    """

    def __init__(self) -> None:
        # An entry says that its key may be due, no more: one that became urgent has two, and the second finds it gone.
        self._queue: asyncio.PriorityQueue[tuple[int, int, str]] = asyncio.PriorityQueue()
        self._numbers = count()
        # To be handed out (in the queue, or again after the worker that has it) -> how urgently.
        self._dirty: dict[str, int] = {}
        self._active: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def __len__(self) -> int:
        """Keys to be handed out; those with a timer are not among them."""
        return len(self._dirty)

    def add(self, key: str, *, routine: bool = False) -> None:
        """Ask for `key` to be looked at as soon as a worker is free; as `routine`, once nothing urgent waits."""
        wish = ROUTINE if routine else URGENT
        if self._closed or self._dirty.get(key, ROUTINE + 1) <= wish:
            return
        self._dirty[key] = wish
        if key not in self._active:
            self._put(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Ask for `key` to be looked at in `seconds` at the latest; an earlier wish for it stands."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, seconds)
        earlier = self._timers.get(key)
        if earlier is not None:
            if earlier.when() <= when:
                return
            earlier.cancel()
        self._timers[key] = loop.call_at(when, self._ring, key)

    async def get(self) -> str:
        """The next key; the worker calls `done` when finished with it. Raises QueueClosed."""
        while True:
            _, _, key = await self._queue.get()
            if self._closed:
                self._queue.put_nowait((CLOSED, 0, ""))  # for the next worker
                raise QueueClosed
            if key in self._dirty and key not in self._active:
                break
        del self._dirty[key]
        self._active.add(key)
        # Whoever looks now sees everything up to now, and says anew when to look again.
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        return key

    def done(self, key: str) -> None:
        """The worker has finished with `key`."""
        self._active.discard(key)
        if key in self._dirty:
            self._put(key)

    def close(self) -> None:
        """Hand out nothing more; waiting workers get QueueClosed."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._queue.put_nowait((CLOSED, 0, ""))

    def _put(self, key: str) -> None:
        self._queue.put_nowait((self._dirty[key], next(self._numbers), key))

    def _ring(self, key: str) -> None:
        del self._timers[key]
        self.add(key)
