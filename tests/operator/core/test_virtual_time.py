"""The clock that tests of waiting parts go by."""

import asyncio
import time

import pytest
from tests.support.waiting import within
from virtual_time import monotonic, run


def test_it_passes_as_timers_say_and_in_their_order() -> None:
    async def scenario() -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def wait(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, round(monotonic(), 6)))

        async with asyncio.TaskGroup() as group:
            for name, seconds in (("day", 86_400.0), ("blink", 0.1), ("hour", 3600.0)):
                group.create_task(wait(name, seconds))
        with pytest.raises(TimeoutError):
            await within(asyncio.Event().wait(), "nothing", seconds=10)
        assert round(monotonic(), 6) == 86_410
        return seen

    assert run(scenario()) == [("blink", 0.1), ("hour", 3600), ("day", 86_400)]


def test_what_takes_real_time_takes_none() -> None:
    async def scenario() -> float:
        asyncio.get_running_loop().call_later(0.01, lambda: None)
        time.sleep(0.05)  # a machine with other things to do
        await asyncio.sleep(0.01)
        return monotonic()

    assert run(scenario()) == 0.01


def test_what_would_wait_for_ever_is_told() -> None:
    with pytest.raises(RuntimeError, match="something that will never come"):
        run(asyncio.Event().wait())
