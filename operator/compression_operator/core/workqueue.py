"""A queue of keys for level-triggered work: adding says "look at this again", never what happened."""

import asyncio
from collections import Counter

URGENT, ROUTINE = 1, 2
"""What goes first; among a namespace's equals, what came first."""


class QueueClosed(Exception):
    """The queue was closed and hands out no more keys."""


def share_of_one_namespace(workers: int) -> int:
    """How many of the workers one namespace may have at once: a quarter, and one at least."""
    return max(1, workers // 4)


class WorkQueue:
    """Keys `namespace/name` to look at, each handed to one worker at a time.

    A key added while a worker has it is handed out again once that worker is done; a key added several times before it
    is handed out counts once. Not thread-safe: one event loop.

    Namespaces take turns, and none has more than a quarter of the workers. So, with four workers or more, three whose
    passes take long, e.g. at an admission webhook that does not answer, hold up no other.
    """

    def __init__(self, workers: int) -> None:
        """`workers`: how many there are to ask for keys."""
        self._share = share_of_one_namespace(workers)
        # How urgently -> namespaces, in the order of their turns -> keys to be handed out, the oldest first.
        self._waiting: dict[int, dict[str, dict[str, None]]] = {URGENT: {}, ROUTINE: {}}
        # To be handed out (waiting, or again after the worker that has it) -> how urgently.
        self._dirty: dict[str, int] = {}
        self._active: set[str] = set()
        self._busy: Counter[str] = Counter()  # namespace -> workers that it has
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()  # set when a worker that waits may find a key
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
        self._changed.set()

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
            self._changed.clear()
            await self._changed.wait()
        if self._closed or found is None:
            raise QueueClosed
        wish, key = found
        self._take(key, wish)
        del self._dirty[key]
        self._active.add(key)
        self._busy[_namespace(key)] += 1
        # Whoever looks now sees everything up to now, and says anew when to look again.
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        return key

    def done(self, key: str) -> None:
        """The worker has finished with `key`."""
        namespace = _namespace(key)
        self._active.discard(key)
        self._busy[namespace] -= 1
        if not self._busy[namespace]:
            del self._busy[namespace]
        if key in self._dirty:
            self._put(key, self._dirty[key])
        self._changed.set()

    def close(self) -> None:
        """Hand out nothing more; waiting workers get QueueClosed."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._changed.set()

    def _next(self) -> tuple[int, str] | None:
        """How urgent the next key is, and the key; None where there is none that may be handed out."""
        for wish, namespaces in self._waiting.items():
            for namespace, keys in namespaces.items():
                if self._busy[namespace] < self._share:
                    return wish, next(iter(keys))
        return None

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
