"""What the tests themselves stand on."""

import ast
import asyncio
from pathlib import Path

import pytest
from tests.support.waiting import until, until_async, within

TESTS = Path(__file__).parents[1]


def test_what_does_not_come_is_named() -> None:
    with pytest.raises(TimeoutError, match=r"^waited 0\.02 s for the end$"):
        until(list, "the end", seconds=0.02)
    with pytest.raises(TimeoutError, match="for 3 to be 4"):
        until(lambda: False, lambda: f"{1 + 2} to be 4", seconds=0)
    with pytest.raises(TimeoutError, match="for a loop's end"):
        asyncio.run(until_async(lambda: None, "a loop's end", seconds=0.02))
    with pytest.raises(TimeoutError, match="for ever") as raised:
        asyncio.run(within(asyncio.sleep(600), "ever", seconds=0.01))
    assert isinstance(raised.value.__cause__, TimeoutError)


def test_what_comes_is_returned() -> None:
    asked = iter([None, 0, "there"])
    assert until(lambda: next(asked), "it") == "there"

    async def slowly() -> object:
        await asyncio.sleep(0)
        return next(asked)

    asked = iter([None, "", "here"])
    assert asyncio.run(until_async(slowly, "it")) == "here"
    assert asyncio.run(within(slowly_done(), "it")) == 7


async def slowly_done() -> int:
    await asyncio.sleep(0)
    return 7


def test_nothing_fails_with_a_timeout_that_names_nothing() -> None:
    """Such a failure in CI tells neither what was waited for nor what was there instead."""
    bare = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in sorted(TESTS.rglob("*.py"))
        if path != TESTS / "support" / "waiting.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("asyncio.timeout", "asyncio.wait_for")
    ]
    assert not bare, "until, until_async and within (tests/support) say what is waited for"
