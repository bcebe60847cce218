"""/healthz, /readyz and /metrics over HTTP, and the judgement of a watch that has gone silent."""

import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

logger = logging.getLogger(__name__)

METRICS_PATH = "/metrics"

MISSED_SECONDS = 60.0
"""Time that a watch may lag behind a LIST before it counts as dead."""


class WatchHealth:
    """What a watch has told, held against LISTs.

    Silence alone is no fault: nothing happens to an idle cluster. It is one when a LIST shows a change, and the watch
    has not told of it a while later. That an object is gone proves nothing: a watch that fell too far behind (410 Gone)
    starts over with what is there, and tells of no deletion in between. Times are monotonic seconds.
    """

    def __init__(self) -> None:
        self._told: dict[str, int] = {}  # newest resourceVersion, by UID
        self._missed: dict[str, tuple[int, float]] = {}  # by UID: what a LIST showed, and since when it is overdue

    def note_event(self, uid: str, version: int) -> None:
        """The watch told of this version of an object."""
        self._told[uid] = max(version, self._told.get(uid, 0))
        if uid in self._missed and version >= self._missed[uid][0]:
            del self._missed[uid]

    def note_gone(self, uid: str) -> None:
        """The watch told that an object is gone."""
        self._told.pop(uid, None)
        self._missed.pop(uid, None)

    def compare(self, listed: Mapping[str, int], version: int, now: float) -> None:
        """A LIST as of `version` held objects (UIDs) in these versions; those that have gone since are left out."""
        missed = {uid: shown for uid, shown in listed.items() if self._told.get(uid, 0) < shown}
        self._told = {uid: told for uid, told in self._told.items() if uid in listed or told > version}
        since = {uid: self._missed.get(uid, (0, now))[1] for uid in missed}
        self._missed = {uid: (shown, since[uid]) for uid, shown in missed.items()}

    def forget_missed(self) -> None:
        """Expect nothing more of the watch than what LISTs show from now on."""
        self._missed.clear()

    def lag(self, now: float) -> float:
        """Seconds for which the oldest missed change is overdue; 0 where the watch has told all."""
        return max((now - since for _, since in self._missed.values()), default=0.0)


@dataclass(frozen=True)
class Probes:
    """What the endpoints answer with: a sentence where something is wrong, None where all is well."""

    live: Callable[[], str | None]
    ready: Callable[[], str | None]
    metrics: Callable[[], bytes]


def exposition(probes: Probes) -> web.Response:
    """The metrics, in Prometheus' text format."""
    return web.Response(body=probes.metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def serve(probes: Probes, host: str | None, port: int, *, metrics: bool = True) -> web.AppRunner:
    """Listen for probes, and for /metrics unless that is served elsewhere (see `listen_on`)."""
    application = web.Application()
    application.router.add_get("/healthz", _probe(probes.live))
    application.router.add_get("/readyz", _probe(probes.ready))
    if metrics:

        async def expose(_: web.Request) -> web.Response:
            return exposition(probes)

        application.router.add_get(METRICS_PATH, expose)
    return await listen_on(application, host, port)


async def listen_on(
    application: web.Application, host: str | None, port: int, tls: ssl.SSLContext | None = None
) -> web.AppRunner:
    """Listen; without a host on every address, of IPv4 and of IPv6: clusters have either or both.

    Call `cleanup` on what is returned to stop. Raises OSError where the port is taken.
    """
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
    except OSError:
        await runner.cleanup()
        raise
    bound = runner.addresses[0][1]  # the one that was given, or that was free for 0
    paths = " ".join(resource.canonical for resource in application.router.resources())
    logger.info("listening on %s:%d%s: %s", host or "*", bound, " over TLS" if tls else "", paths)
    return runner


def _probe(ask: Callable[[], str | None]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        problem = ask()
        return web.Response(text=(problem or "ok") + "\n", status=503 if problem else 200)

    return answer
