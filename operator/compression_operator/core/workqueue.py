"""A queue of keys for level-triggered work: adding says "look at this again", never what happened."""

import asyncio
from collections import Counter, deque

URGENT, ROUTINE = 1, 2
"""What goes first; among a namespace's equals, what came first."""


class QueueClosed(Exception):
    """The queue was closed and hands out no more keys."""


class WorkQueue:
    """Keys `namespace/name` to look at, each handed to one worker at a time.

    A key added while a worker has it is handed out again once that worker is done; a key added several times before it
    is handed out counts once. Not thread-safe: one event loop.

    Namespaces take turns, and one gets a worker only while it has fewer than are free (as a switch shares its buffer:
    Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998). So one whose passes
    take long, e.g. at an admission webhook that does not answer, never has more than half of the workers, rounded up;
    with k such namespaces there is still one free for the next where there are 2^k workers.
    """

    def __init__(self, workers: int) -> None:
        """`workers`: how many there are to ask for keys; half of them, rounded up, serve a namespace that is alone."""
        self._free = workers
        # How urgently -> namespaces, in the order of their turns -> keys to be handed out, the oldest first.
        self._waiting: dict[int, dict[str, dict[str, None]]] = {URGENT: {}, ROUTINE: {}}
        # To be handed out (waiting, or again after the worker that has it) -> how urgently.
        self._dirty: dict[str, int] = {}
        self._active: set[str] = set()
        self._busy: Counter[str] = Counter()  # namespace -> workers that it has
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._askers: deque[asyncio.Future[None]] = deque()  # workers that wait for a key
        self._closed = False

    def __len__(self) -> int:
        """Keys to be handed out; those with a timer are not among them."""
        return len(self._dirty)

    def add(self, key: str, *, routine: bool = False) -> None:
        """Ask for `key` to be looked at as soon as a worker is free; as `routine`, once nothing urgent waits."""
        wish = ROUTINE if routine else URGENT
        before = self._dirty.get(key, ROUTINE + 1)
        if self._closed or before <= wish:
            return
        if key not in self._active:
            if key in self._dirty:
                self._take(key, before)
            self._put(key, wish)
        self._dirty[key] = wish
        self._wake()

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
        while (found := self._next()) is None and not self._closed:
            await self._called()
        if self._closed or found is None:
            raise QueueClosed
        wish, key = found
        self._take(key, wish)
        del self._dirty[key]
        self._active.add(key)
        self._busy[_namespace(key)] += 1
        self._free -= 1
        # Whoever looks now sees everything up to now, and says anew when to look again.
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        self._wake()  # by a worker that was done several keys may have come to be due
        return key

    def done(self, key: str) -> None:
        """The worker has finished with `key`."""
        namespace = _namespace(key)
        self._active.discard(key)
        self._busy[namespace] -= 1
        if not self._busy[namespace]:
            del self._busy[namespace]
        self._free += 1
        if key in self._dirty:
            self._put(key, self._dirty[key])
        self._wake()

    def close(self) -> None:
        """Hand out nothing more; waiting workers get QueueClosed."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        while self._askers:
            self._call()

    async def _called(self) -> None:
        """Wait until there may be a key."""
        asker = asyncio.get_running_loop().create_future()
        self._askers.append(asker)
        try:
            await asker
        except asyncio.CancelledError:
            if asker in self._askers:
                self._askers.remove(asker)
            else:
                self._wake()  # this one was called: another has to come in its place
            raise

    def _next(self) -> tuple[int, str] | None:
        """How urgent the next key is, and the key; None where there is none that may be handed out."""
        if self._free <= 0:
            return None
        for wish, namespaces in self._waiting.items():
            for namespace, keys in namespaces.items():
                if self._busy[namespace] < self._free:
                    return wish, next(iter(keys))
        return None

    def _wake(self) -> None:
        """Have a worker come for the next key, if there is one and one waits."""
        if self._askers and self._next() is not None:
            self._call()

    def _call(self) -> None:
        while self._askers:
            asker = self._askers.popleft()
            if not asker.done():  # it was cancelled
                asker.set_result(None)
                return

    def _put(self, key: str, wish: int) -> None:
        self._waiting[wish].setdefault(_namespace(key), {})[key] = None

    def _take(self, key: str, wish: int) -> None:
        """Take a key out of those that wait; its namespace's next turn comes after all others'."""
        namespace = _namespace(key)
        keys = self._waiting[wish].pop(namespace)
        del keys[key]
        if keys:
            self._waiting[wish][namespace] = keys

    def _ring(self, key: str) -> None:
        del self._timers[key]
        self.add(key)


def _namespace(key: str) -> str:
    return key.partition("/")[0]
