"""A reverse proxy before the API server that injects faults: refusals, cut connections, swallowed watch events."""

import asyncio
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from api import Api

PATH = re.compile(
    r"^/(?:api|apis/(?P<group>[^/]+))/v[^/]+(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[^/]+))?$"
)
EXPIRED = {
    "kind": "Status",
    "status": "Failure",
    "reason": "Expired",
    "message": "too old resource version",
    "code": 410,
}
LEADERLESS = {
    "kind": "Status",
    "status": "Failure",
    "reason": "InternalError",
    "message": "etcdserver: no leader",
    "code": 500,
}
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Asked:
    """A request in RBAC's words."""

    verb: str
    group: str
    resource: str  # with its subresource
    namespace: str
    name: str  # or the one that a list or a watch is confined to
    code: int = 0  # what was answered


@dataclass(frozen=True)
class Answer:
    """What the client gets instead of the API server's answer."""

    code: int
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""  # in place of a metav1.Status


CUT = "cut"  # the connection is closed before the request reaches the API server
LOST = "lost"  # the API server does what was asked, and its answer is lost
HANGS = "hangs"  # nothing is ever answered
GONE = "gone"  # of a watch: its next event is lost, and the client told that what it knows is too old (410)
NO_LEADER = "no leader"  # of a watch: likewise, and told that etcd has no leader (500)
ENDS: dict[object, dict[str, Any]] = {GONE: EXPIRED, NO_LEADER: LEADERLESS}
Fault = Answer | str | None


@dataclass
class Proxy:
    """Where it listens, what was asked of it, and what it does about it."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    fault: Callable[[Asked], Fault] = lambda _: None
    swallow: Callable[[Asked], bool] = lambda _: False  # asked for every event of a watch

    def watched(self, *namespaces: str) -> bool:
        """Whether watches have been opened of all that the operator watches, in each of these namespaces. It leads, and
        acts on what it has listed, before they are.
        """
        kinds = ("compressionruns", "pytorchjobs", "pods")
        opened = {
            (a.resource, a.namespace) for a in list(self.asked) if a.code == 200 and a.verb == "watch" and not a.name
        }
        return opened >= {(kind, namespace) for kind in kinds for namespace in namespaces}

    def answered(self, verb: str, resource: str, code: int = 201) -> list[Asked]:
        return [a for a in list(self.asked) if (a.verb, a.resource, a.code) == (verb, resource, code)]


def in_rbac_words(method: str, path: str, query: Any) -> Asked | None:
    """None for what is no resource, such as discovery."""
    found = PATH.match(path)
    if found is None:
        return None
    parts = found.groupdict()
    verb = VERBS.get(method) or ("watch" if query.get("watch") else "get" if parts["name"] else "list")
    resource = parts["resource"] + (f"/{parts['subresource']}" if parts["subresource"] else "")
    name = parts["name"] or query.get("fieldSelector", "").removeprefix("metadata.name=")
    return Asked(verb, parts["group"] or "", resource, parts["namespace"] or "", name)


@contextmanager
def proxy(api: Api) -> Iterator[Proxy]:
    """Run a proxy in a thread of its own."""
    started: threading.Event = threading.Event()
    found = Proxy("")
    stop = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        context = ssl.create_default_context(cadata=api.authority)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            application = web.Application(client_max_size=16 * 2**20)

            async def handle(request: web.Request) -> web.StreamResponse:
                return await _handle(request, session, api, found)

            application.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            started.set()
            await stop.wait()
            await runner.cleanup()

    # `run` cancels the requests that are still open at the end: watches, mostly.
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(120), "the proxy does not start"
    try:
        yield found
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)


async def _handle(request: web.Request, session: aiohttp.ClientSession, api: Api, found: Proxy) -> web.StreamResponse:
    asked = in_rbac_words(request.method, request.path, request.query)
    fault = found.fault(asked) if asked else None

    def note(code: int) -> None:
        if asked:
            found.asked.append(Asked(asked.verb, asked.group, asked.resource, asked.namespace, asked.name, code))

    if isinstance(fault, Answer):
        note(fault.code)
        status = {"kind": "Status", "reason": fault.reason, "message": f"injected: {fault.reason}", "code": fault.code}
        kind = "text/plain" if fault.text else "application/json"
        return web.Response(
            status=fault.code, text=fault.text or json.dumps(status), headers={"Content-Type": kind, **fault.headers}
        )
    if fault == CUT:
        note(0)
        return _cut(request)
    if fault == HANGS:
        await asyncio.Event().wait()
    headers = {
        k: v for k, v in request.headers.items() if k.lower() not in ("host", "accept-encoding", "content-length")
    }
    body = await request.read()
    async with session.request(
        request.method,
        api.server + request.raw_path,
        headers=headers,
        data=body or None,
        timeout=aiohttp.ClientTimeout(),
    ) as answer:
        note(answer.status)
        if fault == LOST:
            await answer.read()
            return _cut(request)
        kept = {k: v for k, v in answer.headers.items() if k.lower() in ("content-type", "retry-after", "warning")}
        if asked is None or asked.verb != "watch":
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)
        stream = web.StreamResponse(status=answer.status, headers=kept)
        await stream.prepare(request)
        try:
            while line := await answer.content.readline():
                end = found.fault(asked)
                if isinstance(end, str) and end in ENDS:
                    note(ENDS[end]["code"])
                    await stream.write(json.dumps({"type": "ERROR", "object": ENDS[end]}).encode() + b"\n")
                    break
                if not found.swallow(asked):
                    await stream.write(line)
        except (aiohttp.ClientError, ConnectionError):
            pass
        return stream


def _cut(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
