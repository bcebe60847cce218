"""One life of kopf: its handlers, settings and login. See the folder's docstring."""

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import kopf

from compression_operator.kube.cache import Body
from compression_operator.kube.client import Resource
from compression_operator.kube.login import connect

from .session import Openings, Session, session

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

RETRY_SECONDS = (1, 1, 2, 3, 5, 8, 13, 21, 30)
"""Pauses between the tries of what is refused or fails; the last one for ever."""

IDENTITY: Any = "compression-operator"


SelectorOf = Callable[[Resource], str | None]
"""The label selector by which a resource is watched."""


class Retries:
    """Pauses between the tries of what is refused or fails. They have no end: after the last one kopf itself would end,
    and with it the watches of all namespaces.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(RETRY_SECONDS, itertools.repeat(RETRY_SECONDS[-1]))


class NotFound(Exception):
    """kopf has not found what is to be watched."""


class Listener(Protocol):
    """Who is told of what is watched, and of how that goes."""

    resources_returned: asyncio.Event
    """Set to have looked at anew what there is to be watched."""

    def watched(self) -> Mapping[str | None, Sequence[Resource]]:
        """What there is to be watched, by namespace; under None where that is the whole cluster. Called from the
        watches' thread.
        """
        ...

    def note_event(self, resource: Resource, kind: str | None, body: Body) -> None:
        """An event of a watch: `kind` is ADDED, MODIFIED, DELETED, or None for what was there at first."""
        ...

    def note_watching(self, problem: str | None) -> None:
        """Why nothing is watched just now; None once it is."""
        ...


def registry_for(
    resources: Iterable[Resource], note_event: Callable[[Resource, str | None, Body], object], openings: Openings
) -> kopf.OperatorRegistry:
    """Handlers that call `note_event`, in a registry of their own, and a login whose session tells `openings`."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(id="login", registry=registry, backoff=LOGIN_PAUSE_SECONDS)
    async def _(**_: Any) -> Session:
        # As the other client does. What kopf tries by itself depends on what else is installed.
        return session(await asyncio.to_thread(connect), openings)

    for resource in resources:
        _watch(registry, note_event, resource)
    return registry


def settings_for(resources: Iterable[Resource], selector_of: SelectorOf) -> kopf.OperatorSettings:
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
    """Keeps no progress of handlers, because raw event handlers make none (see NoDiffs)."""

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


async def watch_all(
    listener: Listener,
    namespaces: tuple[str, ...],
    selector_of: SelectorOf,
    loop: asyncio.AbstractEventLoop,
    stop: asyncio.Event,
    opened: Callable[[], None],
) -> None:
    """kopf, in this loop; what it tells goes to the listener in that one. Raises whatever a watch dies of, at once:
    `kopf.operator` waits then until every other watch has ended, and one that waits for credentials never does. Raises
    NotFound where there is no place of which all has been asked for after FINDING_SECONDS.
    """
    watched = listener.watched()
    resources = list(dict.fromkeys(itertools.chain(*watched.values())))
    openings = Openings(watched, opened)
    tasks = await kopf.spawn_tasks(
        registry=registry_for(resources, functools.partial(loop.call_soon_threadsafe, listener.note_event), openings),
        settings=settings_for(resources, selector_of),
        clusterwide=not namespaces,
        namespaces=namespaces,
        standalone=True,
        # Unused without peering, but else kopf asks for the user's name, and a user id of the cluster's has none.
        identity=IDENTITY,
        stop_flag=stop,
    )
    ended, _ = await asyncio.wait(tasks, timeout=FINDING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    if not ended and openings.never_requested():
        raise NotFound(
            f"{', '.join(sorted(openings.never_requested()))} not found in what the API server says that it has"
        )
    if not ended:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()


def _watch(
    registry: kopf.OperatorRegistry, note_event: Callable[[Resource, str | None, Body], object], resource: Resource
) -> None:
    @kopf.on.event(resource.group, resource.version, resource.plural, registry=registry)
    async def _(event: Mapping[str, Any], **_: object) -> None:
        note_event(resource, event["type"], event["object"])
