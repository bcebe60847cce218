"""How every test waits for what must come. What does not come is named, and none of them asserts how long it took."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tests.support.matchers import Match

PATIENCE_SECONDS = 300.0
"""How long to wait unless a test knows better, on a machine that has much else to do."""

T = TypeVar("T")

What = str | Callable[[], str]
"""What is waited for: "waited 300 s for" precedes it. A function may add what there is instead, once time is up."""


def until(holds: Callable[[], Any], what: What, *, seconds: float = PATIENCE_SECONDS, every: float = 0.1) -> Any:
    """Wait until the answer is true, and return it. Asks at once, then ever less often, at last `every` seconds.

    Raises TimeoutError, which says what was waited for.
    """
    end, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while not (found := holds()):
        if time.monotonic() > end:
            raise _late(what, seconds, found)
        time.sleep(min(pause, every))
        pause *= 2
    return found


async def until_async(
    holds: Callable[[], Any], what: What, *, seconds: float = PATIENCE_SECONDS, every: float = 0.02
) -> Any:
    """As `until`, while the loop goes on; seconds are the loop's. `holds` may be a coroutine function."""
    clock = asyncio.get_running_loop().time
    end, pause = clock() + seconds, _FIRST_PAUSE
    while not (found := await _answer(holds)):
        if clock() > end:
            raise _late(what, seconds, found)
        await asyncio.sleep(min(pause, every))
        pause *= 2
    return found


async def within(awaited: Awaitable[T], what: What, *, seconds: float = PATIENCE_SECONDS) -> T:
    """Await something that must come to its end. Raises TimeoutError, which says what was waited for."""
    try:
        return await asyncio.wait_for(awaited, seconds)
    except TimeoutError as error:
        raise _late(what, seconds) from error


_FIRST_PAUSE = 0.005


async def _answer(holds: Callable[[], Any]) -> Any:
    answer = holds()
    return await answer if asyncio.iscoroutine(answer) else answer


def _late(what: What, seconds: float, last: Any = None) -> TimeoutError:
    there = f": {last}" if isinstance(last, Match) else ""
    return TimeoutError(f"waited {seconds:g} s for {what if isinstance(what, str) else what()}{there}")
