"""The only file that talks to the Kubernetes API: JSON in, JSON out, over the HTTP client that kopf brings.

Not over the official Kubernetes client, which reads kubeconfigs (login.py) and is what commands ask with: each request
would cost half as much again.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode

import aiohttp
import kopf
from yarl import URL

from .login import NoCluster

logger = logging.getLogger(__name__)

Body = dict[str, Any]

PAGE = 100
"""Objects asked for in one LIST call: reading more of them at once would keep everything else waiting."""

USER_AGENT = "compression-operator"
"""Also the field manager under which the API server notes what we write."""

CHUNK = 64 * 1024
CONNECT_SECONDS = 5.0
LOG_TIMEOUT = aiohttp.ClientTimeout(total=5.0)  # a lost node's kubelet gives no answer
IDLE_SECONDS = 60.0
"""Time for which an idle connection is kept."""

LOGIN_SECONDS = 60.0
"""Time after which the credentials are read again: the kubelet renews a service account's token."""


class ApiError(Exception):
    """The API server refused, or could not be reached.

    `code` is the HTTP status, 0 where there was no answer; `reason` is metav1.Status's (e.g. AlreadyExists), `resource`
    what was asked for, as its CRD is named (e.g. pytorchjobs.kubeflow.org).
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        resource: str = "",
        retry_after: float = 0.0,
        namespace_gone: bool = False,
    ) -> None:
        super().__init__(message or reason or f"HTTP {code}")
        self.code = code
        self.reason = reason
        self.resource = resource
        self.retry_after = retry_after  # seconds that the API server asks to wait
        self.namespace_gone = namespace_gone  # the object's namespace is gone or going

    @property
    def transient(self) -> bool:
        """Whether it is likely to go away by itself: no answer, too many requests, a fault of the server's."""
        return self.code in (0, 408, 409, 429) or self.code >= 500

    @property
    def denied(self) -> bool:
        """Whether it stays so until somebody gives the operator the right to it."""
        return self.code == 403 and not self.namespace_gone


class NotLeading(Exception):
    """Something was to be written while another replica may be leading."""


@dataclass(frozen=True)
class Resource:
    """A kind of object, as the API server's paths name it."""

    group: str  # empty: the core group
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, or of one object or its subresource."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        parts += ["namespaces", namespace] if namespace else []
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


RUNS = Resource("modelcompression.io", "v1alpha1", "compressionruns")
PODS = Resource("", "v1", "pods")
EVENTS = Resource("events.k8s.io", "v1", "events")
LEASES = Resource("coordination.k8s.io", "v1", "leases")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")


@dataclass(frozen=True)
class Permission:
    """A rule of a Role: what the operator does with one resource."""

    group: str
    resource: str  # with its subresource, as in RBAC
    verbs: tuple[str, ...]


COMMON_PERMISSIONS = (
    Permission(RUNS.group, "compressionruns", ("get", "list", "watch")),
    Permission(RUNS.group, "compressionruns/status", ("update",)),
    # Asked by the admission plugin OwnerReferencesPermissionEnforcement of whoever makes a foreground deletion wait.
    Permission(RUNS.group, "compressionruns/finalizers", ("update",)),
    Permission("", "pods", ("list", "watch")),
    Permission("", "pods/log", ("get",)),
    Permission("", "persistentvolumeclaims", ("get",)),
    Permission(EVENTS.group, "events", ("list", "create", "patch")),
    Permission(LEASES.group, "leases", ("get", "create", "update")),
)
"""What the operator may ask of the API server, whatever kinds of job it makes (see backends/kinds.py)."""

OnRequest = Callable[[str, int, float], None]
"""Told of every request: verb, HTTP status (0: no answer), seconds."""


@dataclass(frozen=True)
class Listing:
    """A LIST: every object, as they were at one time."""

    items: list[Mapping[str, Any]]
    version: int  # resourceVersion of the whole


class Kube:
    """A small asynchronous face of the API server. Every call raises ApiError; those that write raise NotLeading."""

    def __init__(
        self,
        login: Callable[[], kopf.ConnectionInfo],
        *,
        timeout_seconds: float = 30.0,
        on_request: OnRequest | None = None,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """`login` is asked at once, where it may raise NoCluster, and every minute. `leads` is asked right before
        anything is written, leases excepted: a process that was stopped for a while must not go on as if no time had
        passed.
        """
        self._login = login
        self._info = login()
        self._logged_in = time.monotonic()
        self._session: aiohttp.ClientSession | None = None
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=CONNECT_SECONDS)
        self._on_request = on_request
        self._leads = leads

    async def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            await self._session.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Body:
        """One object."""
        return await self._json("get", "GET", resource.path(namespace, name))

    async def document(self, path: str) -> Body:
        """What the API server has at a path that is no resource's."""
        return await self._json("get", "GET", path)

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        selector: str | None = None,
        fields: str | None = None,
        keep: Callable[[Body], Mapping[str, Any]] = lambda body: body,
    ) -> Listing:
        """Every object, of a namespace or of all: pages of one consistent list. `keep` says what is wanted of each."""
        selectors = {"labelSelector": selector, "fieldSelector": fields}
        query = {"limit": str(PAGE)} | {name: text for name, text in selectors.items() if text}
        items: list[Mapping[str, Any]] = []
        while True:
            try:
                page = await self._json("list", "GET", resource.path(namespace), query=query)
            except ApiError as error:
                if error.code != 410 or "continue" not in query:
                    raise
                items.clear()  # the pages took so long that their list is forgotten: start over
                del query["continue"]
                continue
            items += map(keep, cast(list[Body], page.get("items", [])))
            following = page["metadata"].get("continue")
            if not following:
                return Listing(items, int(page["metadata"]["resourceVersion"]))
            query["continue"] = following

    async def watchable(self, resource: Resource, namespace: str | None = None, *, selector: str | None = None) -> None:
        """Begin a watch and let go of it: ApiError where that is refused."""
        # Of a name that nothing has: what is there already need not be sent.
        query = {"watch": "true", "timeoutSeconds": "1", "fieldSelector": "metadata.name=-"}
        query |= {"labelSelector": selector} if selector else {}
        await self._bytes("watch", "GET", resource.path(namespace), query=query, last=0)

    async def create(self, resource: Resource, namespace: str | None, body: Body) -> Body:
        """A new object; ApiError 409 AlreadyExists where the name is taken."""
        return await self._json("create", "POST", resource.path(namespace), body=body)

    async def replace(
        self, resource: Resource, namespace: str, name: str, body: Body, *, subresource: str | None = None
    ) -> Body:
        """Put the whole object; ApiError 409 Conflict where its resourceVersion is no longer the newest."""
        return await self._json("update", "PUT", resource.path(namespace, name, subresource), body=body)

    async def patch(
        self, resource: Resource, namespace: str, name: str, body: Body, *, subresource: str | None = None
    ) -> Body:
        """Apply a JSON merge patch."""
        path = resource.path(namespace, name, subresource)
        return await self._json("patch", "PATCH", path, body=body, content_type="application/merge-patch+json")

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str | None = None, propagation: str = "Background"
    ) -> Body | None:
        """Delete an object; that it is gone already is no error. With `uid`: only that very object. Returns the object
        where it stays in sight until its dependents are gone.
        """
        options: Body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        try:
            answer = await self._json("delete", "DELETE", resource.path(namespace, name), body=options)
        except ApiError as error:
            if error.code == 404 or (error.code == 409 and uid):
                return None
            raise
        return answer if answer.get("kind") != "Status" else None

    async def log(self, namespace: str, pod: str, *, container: str, tail_lines: int, last_bytes: int) -> str:
        """The last bytes of a container's last lines; the kubelet's own limitBytes would keep the first ones."""
        path, query = PODS.path(namespace, pod, "log"), {"container": container, "tailLines": str(tail_lines)}
        data = await self._bytes("get", "GET", path, query=query, last=last_bytes, timeout=LOG_TIMEOUT)
        return data.decode(errors="replace")

    async def _json(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> Body:
        data = await self._bytes(verb, method, path, query=query, body=body, content_type=content_type)
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            begins = data[:200].decode(errors="replace")
            raise ApiError(
                0,
                "Unreachable",
                "what answered is not the Kubernetes API, because its answer is not a JSON object: check the server's "
                "address in the kubeconfig, and the proxies on the way (HTTPS_PROXY, NO_PROXY). The answer begins with "
                f"{begins!r}",
            )
        return cast(Body, answer)

    async def _bytes(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
        last: int | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> bytes:
        """The answer to one request. `last`: how many bytes of its end are wanted, where it isn't wanted whole."""
        headers = {**await self._authorization(), "Content-Type": content_type}
        if method != "GET" and _resource(path) != f"{LEASES.plural}.{LEASES.group}" and not self._leads():
            raise NotLeading(f"this replica no longer leads, so it may not {verb} {path}")
        url = f"{self._info.server}{path}?{urlencode(query)}" if query else f"{self._info.server}{path}"
        data = None if body is None else json.dumps(body).encode()
        code, began, timeout = 0, time.perf_counter(), timeout or self._timeout
        try:
            asked = self._http().request(
                method, URL(url, encoded=True), data=data, headers=headers, allow_redirects=False, timeout=timeout
            )
            async with asked as answer:
                code = answer.status
                refused = code >= 300
                text = await answer.read() if last is None or refused else await _end_of(answer, last)
            if refused:
                raise _refusal(code, path, answer.reason or "", text, answer.headers.get("Retry-After", ""))
            return text
        except (aiohttp.ClientError, TimeoutError) as error:
            why = str(error) or f"none within {timeout.total:g} s"
            raise ApiError(0, "Unreachable", f"no answer from the API server: {why}") from error
        finally:
            if code == 401:
                self._logged_in = float("-inf")
            if self._on_request is not None:
                self._on_request(verb, code, time.perf_counter() - began)

    def _http(self) -> aiohttp.ClientSession:
        """The session, made where the event loop runs."""
        if self._session is None:
            tls = self._info.as_ssl_context() if self._info.server.startswith("https:") else False
            # No limit: whoever waits for a lost node or a hanging webhook must not keep the lease from being renewed.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=IDLE_SECONDS),
                # Compressing costs more than it saves on the way to an API server nearby.
                headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT},
                timeout=self._timeout,
                proxy=self._info.proxy_url,
                trust_env=self._info.trust_env,
            )
        return self._session

    async def _authorization(self) -> dict[str, str]:
        """Headers that say who we are. Credentials are read again after a minute, in a thread because an exec plugin
        takes its time; who asks meanwhile goes on with the old ones.
        """
        if time.monotonic() - self._logged_in > LOGIN_SECONDS:
            self._logged_in = time.monotonic()
            try:
                self._info = await asyncio.to_thread(self._login)
            except NoCluster as error:
                logger.warning("the credentials cannot be read again, so the old ones stay: %s", error)
        return self._info.as_http_headers()


async def _end_of(answer: aiohttp.ClientResponse, count: int) -> bytes:
    """The last bytes of a body, which is never held whole; of one of which nothing is wanted, nothing is read."""
    kept = b""
    if count:
        async for chunk in answer.content.iter_chunked(CHUNK):
            kept = (kept + chunk)[-count:]
    else:
        answer.close()
    return kept


def _refusal(code: int, path: str, reason: str, answer: bytes, retry_after: str) -> ApiError:
    """The error that a metav1.Status, or a proxy's page, tells of."""
    text, resource = answer.decode(errors="replace"), _resource(path)
    wait = float(retry_after) if retry_after.isdigit() else 0.0
    try:
        status = json.loads(text)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        return ApiError(code, "", text[:200].strip() or reason, resource=resource, retry_after=wait)
    told = cast(Body, status)
    details = cast(Body, told.get("details") or {})
    causes = {cause.get("reason") for cause in details.get("causes") or ()}
    return ApiError(
        code,
        str(told.get("reason", "")),
        str(told.get("message", "")),
        resource=resource,
        retry_after=wait,
        namespace_gone=details.get("kind") == "namespaces" or "NamespaceTerminating" in causes,
    )


def _resource(path: str) -> str:
    """What a path of the API server's is about: <plural>.<group>, or <plural> alone in the core group."""
    parts = path.strip("/").split("/")
    group, parts = (parts[1], parts[3:]) if parts[0] == "apis" else ("", parts[2:])
    plural = parts[2] if parts[0] == "namespaces" and len(parts) > 2 else parts[0]
    return f"{plural}.{group}" if group else plural
