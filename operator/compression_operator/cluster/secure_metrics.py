"""/metrics over TLS, for whoever the API server knows and allows to read it: as controller-runtime's secure metrics.

Who asks is found by a TokenReview of the bearer token; whether they may, by a SubjectAccessReview for `get` on the path
/metrics. Health probes stay on a port of their own, because the kubelet has no token.
"""

import hashlib
import logging
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from compression_operator.kube.client import ApiError, Body, Kube, OnRequest, Permission, Resource
from compression_operator.kube.login import connect

from .health import METRICS_PATH, Probes, exposition, listen_on, serve

logger = logging.getLogger(__name__)

TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews")
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "subjectaccessreviews")
REVIEWS = tuple(Permission(one.group, one.plural, ("create",)) for one in (TOKEN_REVIEWS, ACCESS_REVIEWS))
"""What the operator may ask besides where this is on, in no namespace."""

CERTIFICATE, KEY = "tls.crt", "tls.key"
"""Files of a Secret of type kubernetes.io/tls, as cert-manager writes it."""

ALLOWED_SECONDS, REFUSED_SECONDS = 60.0, 10.0
"""How long an answer of the API server holds: scrapes come every few seconds, and whoever gets a right waits for it."""

REMEMBERED = 256
"""Tokens whose answer is remembered; more at once are somebody's guesses."""


class NoCertificate(Exception):
    """The certificate or its key cannot be read."""


class Certificate:
    """A certificate in a folder, read anew for the next connection when its files have changed."""

    def __init__(self, folder: Path) -> None:
        """Raises NoCertificate."""
        self._files = (folder / CERTIFICATE, folder / KEY)
        self._seen = self._signature()
        try:
            self.listening = self._context = self._load()
        except (OSError, ssl.SSLError) as error:
            raise NoCertificate(
                f"{folder} holds no certificate for /metrics ({CERTIFICATE} and {KEY}, as in a Secret of type "
                f"kubernetes.io/tls): {error}"
            ) from error
        # The context that listens stays; each connection gets the newest one as it begins.
        self.listening.sni_callback = self._give_newest

    def _give_newest(self, connection: ssl.SSLObject, name: str | None, listening: ssl.SSLContext) -> None:
        seen = self._signature()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = self._load()
                logger.info("reloaded the certificate of /metrics")
            except (OSError, ssl.SSLError) as error:
                logger.warning("the new certificate of /metrics cannot be read, so the old one stays: %s", error)
        connection.context = self._context

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*self._files)
        return context

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What differs where a file has been replaced: the kubelet swaps a link, and others write in place."""
        return tuple(map(_signature, self._files))


def _signature(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True)
class Verdict:
    """What became of a request: an HTTP status, and a sentence where it is refused."""

    status: int
    why: str = ""


class Gate:
    """Who may read /metrics. Answers of the API server are remembered for a while, tokens only by their hash."""

    def __init__(self, kube: Kube, now: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._now = now
        self._known: dict[bytes, tuple[float, Verdict]] = {}  # until when (monotonic seconds), in order of their coming

    async def judge(self, authorization: str) -> Verdict:
        """What a request with this Authorization header gets."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return Verdict(401, "a bearer token is needed, e.g. a service account's")
        key, now = hashlib.sha256(token.encode()).digest(), self._now()
        until, verdict = self._known.get(key, (now, None))
        if verdict is not None and until > now:
            return verdict
        try:
            verdict = await self._ask(token)
        except ApiError as error:
            logger.warning("cannot ask who reads /metrics: %s", error)
            return Verdict(503, "the API server could not be asked who you are; see the operator's log")
        self._known.pop(key, None)
        self._known[key] = (now + (ALLOWED_SECONDS if verdict.status == 200 else REFUSED_SECONDS), verdict)
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return verdict

    async def _ask(self, token: str) -> Verdict:
        status = await self._review(TOKEN_REVIEWS, "TokenReview", {"token": token})
        if not status.get("authenticated"):
            return Verdict(401, "the API server does not know this token")
        user: Body = status.get("user") or {}
        who: Body = {"user": user.get("username", ""), "uid": user.get("uid", "")}
        who |= {"groups": user.get("groups") or [], "extra": user.get("extra") or {}}
        asked: Body = {"nonResourceAttributes": {"path": METRICS_PATH, "verb": "get"}}
        if (await self._review(ACCESS_REVIEWS, "SubjectAccessReview", who | asked)).get("allowed"):
            return Verdict(200)
        return Verdict(
            403, f"{who['user']} may not get {METRICS_PATH}: bind it the ClusterRole metrics-reader of the chart"
        )

    async def _review(self, resource: Resource, kind: str, spec: Body) -> Body:
        """The status that the API server gives a review. Raises ApiError."""
        body = {"apiVersion": resource.api_version, "kind": kind, "spec": spec}
        return (await self._kube.create(resource, None, body)).get("status") or {}

    async def close(self, _: web.Application) -> None:
        """Let go of the connections."""
        await self._kube.close()


@dataclass(frozen=True)
class SecureMetrics:
    """Where /metrics is served over TLS: the port, and the folder of the certificate."""

    port: int
    folder: Path


async def listen(
    probes: Probes, host: str | None, port: int, secure: SecureMetrics | None, on_request: OnRequest
) -> AsyncExitStack:
    """Listen for probes and metrics on one port, or on one each, until what is returned is closed. Raises
    NoCertificate, NoCluster, and OSError where a port is taken.
    """
    async with AsyncExitStack() as listeners:
        plain = await serve(probes, host, port, metrics=secure is None)
        listeners.push_async_callback(plain.cleanup)
        if secure is not None:
            # A client of its own, which is not fenced by leading: replicas that wait are scraped too, and a review
            # writes nothing.
            gate = Gate(Kube(connect, on_request=on_request))
            over_tls = await serve_metrics(probes, gate, Certificate(secure.folder), host, secure.port)
            listeners.push_async_callback(over_tls.cleanup)
        return listeners.pop_all()


async def serve_metrics(
    probes: Probes, gate: Gate, certificate: Certificate, host: str | None, port: int
) -> web.AppRunner:
    """Listen over TLS for whoever the gate lets in (see `listen_on`)."""

    async def answer(request: web.Request) -> web.Response:
        verdict = await gate.judge(request.headers.get("Authorization", ""))
        if verdict.status == 200:
            return exposition(probes)
        challenge = {"WWW-Authenticate": "Bearer"} if verdict.status == 401 else {}
        return web.Response(text=f"{verdict.why}\n", status=verdict.status, headers=challenge)

    application = web.Application()
    application.router.add_get(METRICS_PATH, answer)
    application.on_cleanup.append(gate.close)
    return await listen_on(application, host, port, certificate.listening)
