"""The HTTP session that kopf gets, which tells which watches are open. See the folder's docstring."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import aiohttp
import kopf
from yarl import URL

from compression_operator.kube.client import Resource


class Openings:
    """Waits until all resources of any one place are watched: of another place nothing may ever be seen."""

    def __init__(self, watched: Mapping[str | None, Sequence[Resource]], opened: Callable[[], object]) -> None:
        """What is watched by place: a namespace, or None alone for all of them. `opened` is told each time that a watch
        is opened, from when the first place is complete.
        """
        paths = [{resource.path(place) for resource in resources} for place, resources in watched.items()]
        self._unasked = [set(of_place) for of_place in paths]
        self._missing = paths
        self._opened = opened

    def never_requested(self) -> set[str]:
        """The paths that nothing has been asked of, not even a list, of the place of which they are fewest."""
        return min(self._unasked, key=len)

    def missing(self) -> set[str]:
        """The paths that are not watched yet, of the place of which the fewest are missing."""
        return min(self._missing, key=len)

    def note_request(self, url: URL) -> None:
        """A request is about to be sent."""
        _remove(self._unasked, url)

    def note_answer(self, url: URL, status: int) -> None:
        """A request was answered. The API server sends the head of a watch's answer as soon as it is open."""
        if status != 200 or url.query.get("watch") != "true":
            return
        _remove(self._missing, url)
        if not self.missing():
            self._opened()


def _remove(places: Iterable[set[str]], url: URL) -> None:
    for paths in places:
        # The API server's own address may have a path.
        paths.difference_update([path for path in paths if url.path.endswith(path)])


@dataclass(frozen=True, kw_only=True)
class Session(kopf.AiohttpSession):
    """Equal to any other one with the same credentials: kopf does not try anew what has been refused."""

    aiohttp_session: aiohttp.ClientSession = field(compare=False)
    info: kopf.ConnectionInfo


def session(info: kopf.ConnectionInfo, openings: Openings) -> Session:
    """Made where its event loop runs; as kopf itself makes one of `info`, but for what it tells."""

    async def started(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestStartParams) -> None:
        openings.note_request(params.url)

    async def ended(_: aiohttp.ClientSession, __: SimpleNamespace, params: aiohttp.TraceRequestEndParams) -> None:
        openings.note_answer(params.url, params.response.status)

    told = aiohttp.TraceConfig()
    told.on_request_start.append(started)
    told.on_request_end.append(ended)
    return Session(
        server=info.server,
        priority=info.priority,
        default_namespace=info.default_namespace,
        expiration=info.expiration,
        info=info,
        aiohttp_session=aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
            headers=info.as_http_headers(),
            proxy=info.proxy_url,
            trust_env=info.trust_env,
            trace_configs=[told],
        ),
    )
