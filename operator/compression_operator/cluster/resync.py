"""The caches held against LISTs, so that a lost event costs one period at most; and what the watches have told.

Each namespace by itself: what is refused in one, e.g. because it was deleted with the RoleBinding in it, concerns no
other.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from compression_operator.api.job_kinds import DEFAULT_JOB_KIND
from compression_operator.backends.backend import SELECTOR
from compression_operator.backends.kind import JobKind
from compression_operator.backends.kinds import KINDS
from compression_operator.backends.pods.fields import mapping
from compression_operator.core.problems import refusal
from compression_operator.kube.cache import Body, Cache, version_of
from compression_operator.kube.client import RUNS, ApiError, Kube, Resource

from .health import WatchHealth

logger = logging.getLogger(__name__)

Place = str | None
"""A namespace; None: all of them."""

Told = Callable[[Resource, Body], None]


def selector_of(resource: Resource) -> str | None:
    """The label selector by which it is listed and watched."""
    return None if resource == RUNS else SELECTOR


class StateWentBack(Exception):
    """The cluster is in an older state than it was, e.g. because etcd was restored from a backup. Nothing of what is
    remembered holds: jobs may be gone, and later states have lower versions than those that are known. Kubernetes
    recommends to start every controller anew then, and so does this: the process ends, and the next one knows nothing.
    """


@dataclass(frozen=True)
class _Denial:
    """What keeps us from seeing a place."""

    why: str
    forbidden: bool  # for want of a permission alone, which may be given at any time
    hidden: bool  # the runs cannot even be listed


class Resync:
    """Compares the caches with the cluster. `changed` and `gone` are told what the watches had not told."""

    def __init__(
        self,
        kube: Kube,
        caches: Mapping[Resource, Cache],
        namespaces: Sequence[str],
        *,
        changed: Told,
        gone: Told,
        returned: Callable[[], object],
    ) -> None:
        """Of these namespaces; without any: of the whole cluster. The caches are compared in their order; pods come
        last: what a job tells of its pods is never newer than what is known of them. `returned` is told when the
        watches have to begin anew: there is a resource that the cluster did not know before, or a kind of job that it
        does not have.
        """
        self._kube = kube
        self._caches = caches
        self._places: tuple[Place, ...] = tuple(dict.fromkeys(namespaces)) or (None,)
        self._changed = changed
        self._gone = gone
        self._returned = returned
        self._watches = {(resource, place): WatchHealth() for resource in caches for place in self._places}
        self._kinds = {kind.resource: kind for kind in KINDS.values()}
        self._without: dict[Place, frozenset[Resource]] = {}  # kinds of job that a place does without
        self._denied: dict[Place, _Denial] = {}
        self._listed: dict[tuple[Resource, Place], int] = {}  # resourceVersion of the newest LIST

    def note_event(self, resource: Resource, kind: str | None, body: Body) -> None:
        """An event of a watch."""
        meta = body["metadata"]
        watch = self._watches.get((resource, None if None in self._places else meta["namespace"]))
        if watch is not None and kind == "DELETED":
            watch.note_gone(meta["uid"])
        elif watch is not None:
            watch.note_event(meta["uid"], version_of(body))

    def find_silent(self, seconds: float) -> str | None:
        """A sentence on a watch that has owed news for longer than this; None where there is none."""
        now = time.monotonic()
        for (resource, place), watch in self._watches.items():
            lag = watch.lag(now)
            if lag > seconds:
                where = f" in namespace {place}" if place else ""
                return f"the watch of {resource.plural}{where} missed a change {lag:.0f} s ago: it has gone silent"
        return None

    def watched(self) -> dict[Place, list[Resource]]:
        """What there is to be watched in each place. May be called from any thread."""
        return {place: self._there(self._without.get(place, frozenset())) for place in self._places}

    def _there(self, without: AbstractSet[Resource]) -> list[Resource]:
        return [resource for resource in self._caches if resource not in without]

    @property
    def unusable(self) -> str | None:
        """Why nothing can be seen of any namespace; None where something can."""
        return next(iter(self._denied.values())).why if len(self._denied) == len(self._places) else None

    def denied(self) -> dict[str, bool]:
        """Whether it is denied to us, for each namespace; under no name where the whole cluster is watched."""
        return {place or "": place in self._denied for place in self._places}

    async def compare(self, *, judge: bool) -> None:
        """Put the caches right; `judge`: hold what is found against the watches.

        Raises ApiError where something failed that passes by itself; every other namespace has been compared by then.
        Raises StateWentBack at once.
        """
        failed: ApiError | None = None
        for place in self._places:
            listed = False
            try:
                without: set[Resource] = set()
                for resource in self._caches:
                    try:
                        await self._compare(resource, place, judge)
                    except ApiError as error:
                        self._skip_unavailable(resource, place, error, without)
                listed = True
                await self._try_watches(place, without)
                self._note_missing(place, frozenset(without))
            except ApiError as error:
                if error.transient:
                    failed = error
                else:
                    self._deny(place, error, listed=listed)
                continue
            denial = self._denied.pop(place, None)
            if denial is not None:
                logger.info("namespace %s is there again", place or "(all)")
            if denial is not None and not denial.forbidden:
                self._returned()
        if failed is not None:
            raise failed

    def _deny(self, place: Place, error: ApiError, *, listed: bool) -> None:
        before, words = self._denied.get(place), refusal(error.code, str(error), error.resource).message
        if before is None or before.why != words:
            logger.warning("cannot see namespace %s, which is tried again: %s", place or "(all)", words)
        hidden = not listed and error.denied and error.resource == f"{RUNS.plural}.{RUNS.group}"
        # A resource that was missing may be there by now, though we may not see it: kopf does not know it yet.
        forbidden = error.denied and (before is None or before.forbidden)
        self._denied[place] = _Denial(words, forbidden, hidden)
        for resource in self._caches:
            self._watches[resource, place].forget_missed()  # no watch can tell what is denied
        if place is not None and hidden and before is not None and before.hidden:
            # They may have gone with the RoleBinding, and nobody would ever say so. Their jobs stay known: a run that
            # is still there must not miss them. One refusal may pass: an API server that has just started may not know
            # its RoleBindings yet.
            for body in self._caches[RUNS].forget(place):
                self._gone(RUNS, body)

    async def _compare(self, resource: Resource, place: Place, judge: bool) -> None:
        """Compare one kind. Raises StateWentBack.

        A LIST that names no version is of a state no older than its request, from whichever API server: one that is
        older than what was known by then says that the state has gone back. Once the versions have caught up, or where
        the backup was restored with `etcdutl --bump-revision`, each object still tells by its own, or by being back.
        """
        cache, newest = self._caches[resource], self._listed.get((resource, place), 0)
        known = {body["metadata"]["uid"]: version_of(body) for body in cache.all()}
        found = await self._kube.list(resource, place, selector=selector_of(resource), keep=cache.keep)
        self._listed[resource, place] = found.version
        older = (version_of(body) < known.get(body["metadata"]["uid"], 0) for body in found.items)
        back = (cache.is_restored(body, found.version) for body in found.items)
        if found.version < newest or any(older) or any(back):
            where = f"namespace {place}" if place else "the cluster"
            raise StateWentBack(
                f"the {resource.plural} in {where} are in an older state than they were (resourceVersion "
                f"{found.version}), as after etcd was restored from a backup: the operator restarts"
            )
        changed, gone = cache.replace_all(found.items, found.version, place)
        for body in gone:
            self._gone(resource, body)
        for body in (*changed, *gone):
            self._changed(resource, body)
        if judge:
            there = {body["metadata"]["uid"]: version_of(body) for body in found.items}
            listed = {uid: shown for uid, shown in there.items() if not cache.has_gone(uid)}
            self._watches[resource, place].compare(listed, found.version, time.monotonic())

    async def _try_watches(self, place: Place, without: set[Resource]) -> None:
        """Raises ApiError where a watch is refused: kopf tries again for ever, and tells nobody but the log."""
        for resource in self._there(without):
            try:
                await self._kube.watchable(resource, place, selector=selector_of(resource))
            except ApiError as error:
                if not error.transient:
                    self._skip_unavailable(resource, place, error, without)

    def _skip_unavailable(self, resource: Resource, place: Place, error: ApiError, without: set[Resource]) -> None:
        """Add a resource that cannot be listed or watched to what the place does without. Raises the error where it
        cannot do without: anything but a kind of job that the cluster does not have, or that no run of the place names,
        and the last kind that is left.
        """
        kind = self._kinds.get(resource)
        if error.transient or kind is None or (error.code != 404 and self._is_used(kind, place)):
            raise error
        without.add(resource)
        if without >= self._kinds.keys():
            raise error

    def _is_used(self, kind: JobKind, place: Place) -> bool:
        """Whether a run of the place names the kind."""
        runs = (run for run in self._caches[RUNS].all() if place in (None, run["metadata"]["namespace"]))
        return any(mapping(run, "spec").get("backend", DEFAULT_JOB_KIND) == kind.name for run in runs)

    def _note_missing(self, place: Place, without: frozenset[Resource]) -> None:
        """Take note of the kinds of job that the place does without; where they are others, the watches begin anew."""
        for resource in without:
            self._watches[resource, place].forget_missed()  # no watch can tell what is not there
        if without == self._without.get(place, frozenset()):
            return
        self._without[place] = without
        names = ", ".join(f"{resource.plural}.{resource.group}" for resource in without) or "no kind of job"
        logger.info("namespace %s does without %s", place or "(all)", names)
        self._returned()
