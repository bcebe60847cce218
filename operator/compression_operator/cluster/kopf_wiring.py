"""kopf wiring, and nothing else: what the watches tell goes to the service, which decides what it means.

Raw event handlers only. kopf's change handlers, daemons and timers would write finalizers and annotations onto the
users' resources; `on.event` writes nothing.
"""

import asyncio
import functools
import itertools
import signal
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import kopf

from compression_operator.kube.cache import Body
from compression_operator.kube.client import Resource
from compression_operator.kube.login import connect
from compression_operator.kube.watch_session import Openings, Session, session
from compression_operator.kube.watch_thread import Retries, keep_watching

from .resync import selector_of
from .service import Service

STREAM_SECONDS = 600
"""A watch is closed by the API server and opened anew this often."""

SILENT_SECONDS = 150
"""A watch that brings nothing for so long, not even a bookmark (one a minute), is dead and opened anew."""

CONNECT_SECONDS = 10

LOGIN_PAUSE_SECONDS = 5
"""Pause until a login that failed is tried again."""

FINDING_SECONDS = 60.0
"""Time for kopf to find what is to be watched. It looks only once, when it starts, and the API server may list a new
resource a while before it says that it has it. How long its lists and watches take then is no matter.
"""

IDENTITY: Any = "compression-operator"


class NotFound(Exception):
    """kopf has not found what is to be watched."""


def registry_for(
    resources: Iterable[Resource], fed: Callable[[Resource, str | None, Body], object], openings: Openings
) -> kopf.OperatorRegistry:
    """Handlers that call `fed`, in a registry of their own, and a login whose session tells `openings`."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(id="login", registry=registry, backoff=LOGIN_PAUSE_SECONDS)
    async def _(**_: Any) -> Session:
        # As the other client does. What kopf tries by itself depends on what else is installed.
        return session(await asyncio.to_thread(connect), openings)

    for resource in resources:
        _watch(registry, fed, resource)
    return registry


def settings_for(resources: Iterable[Resource]) -> kopf.OperatorSettings:
    """kopf's settings: watch what we ask for, write nothing, look at nothing else."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # else it needs to list CRDs and namespaces
    settings.persistence.diffbase_storage = NoDiffs()
    settings.persistence.progress_storage = NoProgress()
    settings.watching.server_timeout = STREAM_SECONDS
    settings.watching.inactivity_timeout = SILENT_SECONDS
    settings.watching.connect_timeout = CONNECT_SECONDS
    settings.networking.error_backoffs = Retries()
    for resource in resources:
        if selector := selector_of(resource):
            settings.watching.label_selectors[resource.group, resource.version, resource.plural] = selector
    return settings


class NoDiffs(kopf.DiffBaseStorage):
    """Keeps nothing of an object to find later changes by: raw event handlers ask for none.

    kopf asks all the same, with every event, and its own storages copy the whole object deeply for it, several times:
    half of what the operator computed at all.
    """

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


class NoProgress(kopf.ProgressStorage):
    """Keeps no progress of handlers, for raw event handlers make none (see NoDiffs)."""

    def fetch(self, *, key: str, body: kopf.Body) -> None:
        return None

    def store(self, *, key: str, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        pass

    def purge(self, *, key: str, body: kopf.Body, patch: kopf.Patch) -> None:
        pass

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        pass

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        return essence


async def operate(service: Service, namespaces: tuple[str, ...]) -> None:
    """Watch and work until SIGTERM or SIGINT. Raises LeadershipLost, and whatever the service dies of."""
    loop = asyncio.get_running_loop()
    watching = asyncio.create_task(
        keep_watching(
            lambda stop, opened: _watch_all(service, namespaces, loop, stop, opened),
            service,
            service.resources_returned,
        ),
        name="watches",
    )
    working = asyncio.create_task(service.run(), name="service")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stop)
    await asyncio.wait((watching, working), return_when=asyncio.FIRST_COMPLETED)
    service.stop()
    watching.cancel()
    for result in await asyncio.gather(working, watching, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def _watch_all(
    service: Service,
    namespaces: tuple[str, ...],
    loop: asyncio.AbstractEventLoop,
    stop: asyncio.Event,
    opened: Callable[[], None],
) -> None:
    """kopf, in this loop; what it tells goes to the service in that one. Raises whatever a watch dies of, at once:
    `kopf.operator` waits then until every other watch has ended, and one that waits for credentials never does. Raises
    NotFound where there is no place of which all has been asked for after FINDING_SECONDS.
    """
    watched = service.watched()
    resources = list(dict.fromkeys(itertools.chain(*watched.values())))
    openings = Openings(watched, opened)
    tasks = await kopf.spawn_tasks(
        registry=registry_for(resources, functools.partial(loop.call_soon_threadsafe, service.fed), openings),
        settings=settings_for(resources),
        clusterwide=not namespaces,
        namespaces=namespaces,
        standalone=True,
        # Unused without peering, but else kopf asks for the user's name, and a user id of the cluster's has none.
        identity=IDENTITY,
        stop_flag=stop,
    )
    ended, _ = await asyncio.wait(tasks, timeout=FINDING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if not ended and openings.unasked():
        raise NotFound(f"{', '.join(sorted(openings.unasked()))} not found in what the API server says that it has")
    if not ended:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()


def _watch(
    registry: kopf.OperatorRegistry, fed: Callable[[Resource, str | None, Body], object], resource: Resource
) -> None:
    @kopf.on.event(resource.group, resource.version, resource.plural, registry=registry)
    async def _(event: Mapping[str, Any], **_: object) -> None:
        fed(resource, event["type"], event["object"])
