"""When a watch counts as dead, and what the endpoints answer."""

import asyncio

import aiohttp
import pytest

from compression_operator.cluster.health import Probes, WatchHealth, serve
from compression_operator.cluster.options import parse


def test_silence_alone_is_no_fault() -> None:
    watch = WatchHealth()
    watch.note_event("a", 5)
    watch.compare({"a": 5}, 9, 100.0)
    assert watch.lag(1e6) == 0.0


def test_a_change_that_only_the_list_shows_is_missed_from_then_on() -> None:
    watch = WatchHealth()
    watch.note_event("a", 5)
    watch.compare({"a": 7}, 9, 100.0)
    watch.compare({"a": 8}, 10, 160.0)
    assert watch.lag(161.0) == 61.0, "since it was missed first"
    watch.note_event("a", 7)
    assert watch.lag(161.0) == 61.0, "there is newer"
    watch.note_event("a", 8)
    assert watch.lag(161.0) == 0.0


def test_an_object_that_the_watch_never_told_of() -> None:
    watch = WatchHealth()
    watch.compare({"a": 7}, 9, 100.0)
    assert watch.lag(103.0) == 3.0
    watch.note_event("a", 7)
    assert watch.lag(103.0) == 0.0


def test_a_deletion_that_the_watch_did_not_tell_is_no_fault() -> None:
    """A watch that had to start over tells of what is there, and perhaps there is nothing."""
    watch = WatchHealth()
    watch.note_event("a", 5)
    watch.note_event("young", 12)
    watch.compare({}, 9, 100.0)
    assert watch.lag(1000.0) == 0.0
    watch.compare({"young": 12}, 13, 160.0)
    assert watch.lag(1000.0) == 0.0, "made after the first list, it was told of all the same"


def test_what_a_later_list_no_longer_shows_is_forgiven() -> None:
    watch = WatchHealth()
    watch.compare({"a": 7}, 9, 100.0)
    watch.compare({}, 10, 160.0)
    assert watch.lag(1000.0) == 0.0, "it came and went unseen: nothing is missing now"


def test_the_endpoints() -> None:
    async def scenario() -> None:
        problem: str | None = "the watch is dead"
        runner = await serve(Probes(lambda: problem, lambda: None, lambda: b"x 1\n"), "127.0.0.1", 0)
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{base}/healthz") as answer:
                assert (answer.status, await answer.text()) == (503, "the watch is dead\n")
            async with session.get(f"{base}/readyz") as answer:
                assert (answer.status, await answer.text()) == (200, "ok\n")
            problem = None
            async with session.get(f"{base}/healthz") as answer:
                assert answer.status == 200
            async with session.get(f"{base}/metrics") as answer:
                assert await answer.text() == "x 1\n" and answer.headers["Content-Type"].startswith("text/plain")
        await runner.cleanup()

    asyncio.run(scenario())


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_endpoints_are_there_for_clusters_of_either_family(address: str) -> None:
    """Where the pod has no address of IPv4, probes come by IPv6 alone."""

    async def scenario() -> None:
        runner = await serve(Probes(lambda: None, lambda: None, bytes), parse(["--image", "x"]).host, 0)
        # Where any port will do, each family has one of its own.
        port = next(port for host, port, *_ in runner.addresses if (":" in host) == (":" in address))
        url = f"http://[{address}]:{port}/healthz" if ":" in address else f"http://{address}:{port}/healthz"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            assert answer.status == 200
        await runner.cleanup()

    asyncio.run(scenario())
