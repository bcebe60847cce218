"""A queue of keys for level-triggered work: adding says "look at this again", never what happened."""

import asyncio


class QueueClosed(Exception):
    """The queue was closed and hands out no more keys."""


class WorkQueue:
    """Keys to look at, each handed to one worker at a time.

    A key added while a worker has it is handed out again once that worker is done; a key added several times before it
    is handed out counts once. Not thread-safe: one event loop.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()  # None: closed
        self._dirty: set[str] = set()  # to be handed out: in the queue, or again after the worker that has it
        self._active: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def __len__(self) -> int:
        """Keys to be handed out; those with a timer are not among them."""
        return len(self._dirty)

    def add(self, key: str) -> None:
        """Ask for `key` to be looked at as soon as a worker is free."""
        if self._closed or key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._active:
            self._queue.put_nowait(key)

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
        key = await self._queue.get()
        if key is None or self._closed:
            self._queue.put_nowait(None)  # for the next worker
            raise QueueClosed
        self._dirty.discard(key)
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
            self._queue.put_nowait(key)

    def close(self) -> None:
        """Hand out nothing more; waiting workers get QueueClosed."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._queue.put_nowait(None)

    def _ring(self, key: str) -> None:
        del self._timers[key]
        self.add(key)
