"""One replica acts, the others watch: a coordination.k8s.io Lease, renewed in time or lost.

kopf's peering is a resource of its own with a minute's memory; a Lease is what every other controller uses. As in
client-go, a candidate trusts no clock but its own: a lease has expired when *it* has seen no change for the duration.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from compression_operator.core.problems import refusal

from .client import LEASES, ApiError, Kube

logger = logging.getLogger(__name__)

Lease = dict[str, Any]

RELEASE_SECONDS = 5.0
"""Time to give the lease up; without an answer by then it expires by itself."""

EXPIRED_SECONDS = 0.01
"""A follower looks this long after the lease's end: by no rounding is it too early."""


READ_SECONDS = 0.1
"""Time to read an answer that has come."""


class LeadershipLost(Exception):
    """The lease could not be renewed in time; another replica may be acting already."""


@dataclass(frozen=True)
class Timing:
    """Seconds. `duration` without a change frees the lease, `renew` without a success loses it. Tries begin every
    `retry`; a request without an answer within `request` is given up and asked again.

    At the latest `retry + duration + request` = 14 s after the leader's last renewal, and three answers, a follower
    leads, though one of its requests, whichever, gets no answer: it first looks `retry` after the renewal, sees a
    lease that is over `duration` after that look's answer, looks again right then, and writes. What is lost costs
    `request` once: the next try comes at once, because `retry` is over by then too. So 15 s hold where answers take a
    third of a second each.

    A leader survives two requests in a row without an answer: it tries after `retry`, `+ request`, `+ 2 request` = 2, 4
    and 6 s, and has until `renew` = 7 s.
    """

    duration: int = 10
    renew: float = 7.0
    retry: float = 2.0
    request: float = 2.0


@dataclass
class Observation:
    """What one candidate has seen of the lease, by its own clock."""

    version: str = ""
    until: float = field(default=0.0)  # monotonic seconds at which the lease is over, unless it changes

    def see(self, lease: Lease, now: float) -> None:
        """Note that the lease looks like this now."""
        version = lease["metadata"]["resourceVersion"]
        if version != self.version:
            spec: dict[str, Any] = lease.get("spec") or {}
            self.version, self.until = version, now + float(spec.get("leaseDurationSeconds") or 0)


def may_take(lease: Lease, identity: str, seen: Observation, now: float) -> bool:
    """Whether `identity` may write itself into the lease. Pure."""
    spec: dict[str, Any] = lease.get("spec") or {}
    holder = spec.get("holderIdentity") or ""
    if holder in ("", identity):
        return True
    return now > seen.until


def claimed(lease: Lease, identity: str, duration: int, now: datetime) -> Lease:
    """The lease with `identity` as its holder. Pure."""
    spec = dict(lease.get("spec") or {})
    stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if spec.get("holderIdentity") != identity:
        spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (1 if "holderIdentity" in spec else 0)
        spec["acquireTime"] = stamp
    spec |= {"holderIdentity": identity, "leaseDurationSeconds": duration, "renewTime": stamp}
    return lease | {"spec": spec}


def _words(error: ApiError) -> str:
    return refusal(error.code, str(error), error.resource).message if error.denied else str(error)


class LeaderElection:
    """A candidate for the lease `namespace/name`."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        identity: str,
        *,
        timing: Timing | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing or Timing()
        self._monotonic = monotonic
        self._seen = Observation()
        self._held: Lease | None = None
        self._renewed = 0.0  # monotonic seconds at which the last successful renewal was asked for
        self.problem: str | None = None  # what keeps this replica from ever leading

    @property
    def leads(self) -> bool:
        """Whether this replica holds the lease, and nobody can have taken it by now.

        Asked before every write, because the process may have been stopped since it renewed the lease. Safe from
        threads.
        """
        return self._held is not None and self._monotonic() - self._renewed < self._timing.duration

    async def acquire(self) -> None:
        """Wait until this replica holds the lease."""
        waiting = False
        while True:
            began = self._monotonic()
            try:
                leads, self.problem = await self._try(), None
                if leads:
                    logger.info("this replica (%s) leads", self._identity)
                    return
                if not waiting:
                    logger.info("another replica leads; this one (%s) watches and waits", self._identity)
                    waiting = True
            except ApiError as error:
                self.problem = None if error.transient else _words(error)
                logger.warning("cannot read or write the lease %s/%s: %s", self._namespace, self._name, error)
            except TimeoutError:
                self.problem, late = None, self._timing.request
                logger.warning("the lease %s/%s: no answer within %g s", self._namespace, self._name, late)
            await self._pause(began)

    async def hold(self) -> None:
        """Renew until cancelled. Raises LeadershipLost where that failed for too long."""
        late = f"not renewed for {self._timing.renew:g} s"
        problem, began = late, self._renewed
        while True:
            await self._pause(began)
            began = self._monotonic()
            deadline = self._renewed + self._timing.renew
            try:
                async with asyncio.timeout(max(deadline - self._monotonic(), 0.0)):
                    if await self._try():
                        problem = late
                        continue
                problem, deadline = "another replica holds it", 0.0
            except TimeoutError:
                pass  # what went wrong before tells why
            except ApiError as error:
                problem = _words(error)
            if self._monotonic() >= deadline:
                self._held = None
                raise LeadershipLost(f"lost the lease {self._namespace}/{self._name}: {problem}")

    async def release(self) -> None:
        """Give the lease up, so that the next replica need not wait for it to expire. Best effort, and soon over."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                try:
                    await self._free(held)
                except ApiError as error:
                    if error.code != 409:
                        raise
                    now = await self._kube.get(LEASES, self._namespace, self._name)
                    if now["spec"].get("holderIdentity") == self._identity:
                        await self._free(now)
        except (ApiError, TimeoutError) as error:
            logger.info("could not release the lease: %s", error or "no answer from the API server")

    async def _free(self, lease: Lease) -> None:
        freed = lease | {"spec": lease["spec"] | {"holderIdentity": ""}}
        await self._kube.replace(LEASES, self._namespace, self._name, freed)

    async def _pause(self, began: float) -> None:
        """Wait for the next try, after one that began then."""
        due = began + self._timing.retry
        if began <= self._seen.until:
            due = min(due, self._seen.until + EXPIRED_SECONDS)
        await asyncio.sleep(max(due - self._monotonic(), 0.0))

    async def _answer(self, request: Awaitable[Lease]) -> Lease:
        """What the API server answers. Raises ApiError, and TimeoutError where that takes too long."""
        asked = asyncio.ensure_future(request)
        try:
            await asyncio.wait((asked,), timeout=self._timing.request - READ_SECONDS)
            # Where this process itself was held up the answer may be there, and has only to be read.
            await asyncio.wait((asked,), timeout=READ_SECONDS)
            if not asked.done():
                raise TimeoutError
            return asked.result()
        finally:
            asked.cancel()

    async def _try(self) -> bool:
        """Create, take or renew the lease; False where another replica holds it."""
        try:
            return await self._take()
        except ApiError as error:
            if error.code != 409:
                raise
        # Somebody wrote it meanwhile. That need not be another replica: whose it is now is told by another look.
        return await self._take()

    async def _take(self) -> bool:
        """As `_try`, with ApiError 409 where somebody writes the lease between our look at it and our own write."""
        try:
            lease = await self._answer(self._kube.get(LEASES, self._namespace, self._name))
        except ApiError as error:
            if error.code != 404:
                raise
            lease = {
                "apiVersion": LEASES.api_version,
                "kind": "Lease",
                "metadata": {"name": self._name, "namespace": self._namespace},
            }
            await self._write(lease, new=True)
            return True
        now = self._monotonic()
        self._seen.see(lease, now)
        if not may_take(lease, self._identity, self._seen, now):
            return False
        await self._write(lease, new=False)
        return True

    async def _write(self, lease: Lease, *, new: bool) -> None:
        asked = self._monotonic()
        wanted = claimed(lease, self._identity, self._timing.duration, datetime.now(UTC))
        if new:
            request = self._kube.create(LEASES, self._namespace, wanted)
        else:
            request = self._kube.replace(LEASES, self._namespace, self._name, wanted)
        self._held = await self._answer(request)
        self._renewed = asked
        self._seen.see(self._held, self._monotonic())
