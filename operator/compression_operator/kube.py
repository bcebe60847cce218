"""The only file that talks to the Kubernetes API: JSON in, JSON out, over the official client.

The client is the synchronous one, in a few threads: kopf has loaded it already; its asyncio twin would add 50 MiB.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import urllib3
from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

Body = dict[str, Any]

PAGE = 500
"""Objects asked for in one LIST call."""

USER_AGENT = "compression-operator"
"""Also the field manager under which the API server notes what we write."""

CONNECT_SECONDS = 5.0


class ApiError(Exception):
    """The API server refused, or could not be reached.

    `code` is the HTTP status, 0 where there was no answer; `reason` is metav1.Status's (e.g. AlreadyExists).
    """

    def __init__(
        self, code: int, reason: str, message: str, *, retry_after: float = 0.0, namespace_gone: bool = False
    ) -> None:
        super().__init__(message or reason or f"HTTP {code}")
        self.code = code
        self.reason = reason
        self.retry_after = retry_after  # seconds that the API server asks to wait
        self.namespace_gone = namespace_gone  # the object's namespace is gone or going

    @property
    def passing(self) -> bool:
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
PYTORCHJOBS = Resource("kubeflow.org", "v1", "pytorchjobs")
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


PERMISSIONS = (
    Permission(RUNS.group, "compressionruns", ("get", "list", "watch")),
    Permission(RUNS.group, "compressionruns/status", ("update",)),
    Permission(PYTORCHJOBS.group, "pytorchjobs", ("get", "list", "watch", "create", "delete")),
    Permission("", "pods", ("list", "watch")),
    Permission("", "pods/log", ("get",)),
    Permission("", "persistentvolumeclaims", ("get",)),
    Permission(EVENTS.group, "events", ("create", "patch")),
    Permission(LEASES.group, "leases", ("get", "create", "update")),
)
"""Everything the operator may ask of the API server; a test holds the requests of whole runs against it. Leases are
needed in the operator's own namespace alone, the rest in every namespace that it watches.
"""

OnRequest = Callable[[str, int, float], None]
"""Told of every request: verb, HTTP status (0: no answer), seconds."""


@dataclass(frozen=True)
class Listing:
    """A LIST: every object, as they were at one time."""

    items: list[Body]
    version: int  # resourceVersion of the whole


class NoCluster(Exception):
    """Neither a pod's service account nor a kubeconfig says where the API server is."""


def connect(threads: int) -> ApiClient:
    """A client for the cluster this process runs in, or for the one that KUBECONFIG names. Raises NoCluster."""
    configuration = Configuration()
    # The defaults pool four connections, and retry on their own behind our back.
    configuration.connection_pool_maxsize = threads
    configuration.retries = urllib3.Retry(total=0)
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
            load_incluster_config(client_configuration=configuration)
        else:
            load_kube_config(client_configuration=configuration)
    except ConfigException as error:
        raise NoCluster(f"no cluster to talk to: {error} Set KUBECONFIG, or run in a pod.") from error
    client = ApiClient(configuration)
    client.user_agent = USER_AGENT
    return client


class Kube:
    """A small asynchronous face of the API server. Every call raises ApiError; those that write raise NotLeading."""

    def __init__(
        self,
        client: ApiClient,
        *,
        threads: int = 8,
        timeout_seconds: float = 30.0,
        on_request: OnRequest | None = None,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """`leads` is asked right before anything is written, leases excepted: a process that was stopped for a while
        must not go on as if no time had passed.
        """
        self._client = client
        self._leads = leads
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="kube")
        self._timeout = timeout_seconds
        self._on_request = on_request

    def close(self) -> None:
        """Let go of the threads; calls under way end first."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def get(self, resource: Resource, namespace: str, name: str) -> Body:
        """One object."""
        return await self._json("get", "GET", resource.path(namespace, name))

    async def list(self, resource: Resource, namespace: str | None = None, *, selector: str | None = None) -> Listing:
        """Every object of a namespace, or of all of them; pages of one consistent list."""
        query: dict[str, str] = {"limit": str(PAGE)} | ({"labelSelector": selector} if selector else {})
        items: list[Body] = []
        while True:
            try:
                page = await self._json("list", "GET", resource.path(namespace), query=query)
            except ApiError as error:
                if error.code != 410 or "continue" not in query:
                    raise
                items.clear()  # the pages took so long that their list is forgotten: start over
                del query["continue"]
                continue
            items += cast(list[Body], page.get("items", []))
            following = page["metadata"].get("continue")
            if not following:
                return Listing(items, int(page["metadata"]["resourceVersion"]))
            query["continue"] = following

    async def watchable(self, resource: Resource, namespace: str | None = None, *, selector: str | None = None) -> None:
        """Begin a watch and let go of it: ApiError where that is refused."""
        # Of a name that nothing has: what is there already need not be sent.
        query = {"watch": "true", "timeoutSeconds": "1", "fieldSelector": "metadata.name=-"}
        query |= {"labelSelector": selector} if selector else {}
        await self._bytes("watch", "GET", resource.path(namespace), query=query, whole=False)

    async def create(self, resource: Resource, namespace: str, body: Body) -> Body:
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
        """Delete an object; that it is gone already is no error. With `uid`: only that very object.

        Returns the object where it stays in sight until its dependents are gone.
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

    async def log(self, namespace: str, pod: str, *, container: str, tail_lines: int, limit_bytes: int) -> str:
        """The end of a container's log."""
        query = {"container": container, "tailLines": str(tail_lines), "limitBytes": str(limit_bytes)}
        data = await self._bytes("get", "GET", PODS.path(namespace, pod, "log"), query=query)
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
        return json.loads(await self._bytes(verb, method, path, query=query, body=body, content_type=content_type))

    async def _bytes(
        self,
        verb: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
        whole: bool = True,
    ) -> bytes:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, self._call, verb, method, path, dict(query or {}), body, content_type, whole
        )

    def _call(
        self,
        verb: str,
        method: str,
        path: str,
        query: dict[str, str],
        body: Body | None,
        content_type: str,
        whole: bool,
    ) -> bytes:
        """One request, in a thread of the pool; of an answer that is not wanted whole, nothing is read."""
        if method != "GET" and f"/{LEASES.plural}" not in path and not self._leads():
            raise NotLeading(f"this replica no longer leads, so it may not {verb} {path}")
        code, began = 0, time.perf_counter()
        try:
            answer: urllib3.BaseHTTPResponse = self._client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=(CONNECT_SECONDS, self._timeout),
            )
            code = answer.status
            if not whole:
                answer.close()
                return b""
            return answer.data
        except ApiException as error:
            code = error.status or 0
            raise _refusal(code, error) from error
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(0, "Unreachable", f"no answer from the API server: {error}") from error
        finally:
            if self._on_request is not None:
                self._on_request(verb, code, time.perf_counter() - began)


def _refusal(code: int, error: ApiException) -> ApiError:
    """The error that a metav1.Status, or a proxy's page, tells of."""
    text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body or ""
    headers = cast(Mapping[str, str], error.headers or {})
    retry_after = headers.get("Retry-After", "")
    wait = float(retry_after) if retry_after.isdigit() else 0.0
    try:
        status = json.loads(text)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        return ApiError(code, "", text[:200] or error.reason or "", retry_after=wait)
    told = cast(Body, status)
    details = cast(Body, told.get("details") or {})
    causes = {cause.get("reason") for cause in details.get("causes") or ()}
    return ApiError(
        code,
        str(told.get("reason", "")),
        str(told.get("message", "")),
        retry_after=wait,
        namespace_gone=details.get("kind") == "namespaces" or "NamespaceTerminating" in causes,
    )
