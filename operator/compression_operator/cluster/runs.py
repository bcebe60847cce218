"""CompressionRuns on a cluster, as the controller wants them: read from the cache, status written with a guard."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from compression_operator.api.run import CompressionRun, ObjectMeta, cluster_run
from compression_operator.api.status import CompressionRunStatus
from compression_operator.api.templates import ANYBODYS, TemplatePolicy
from compression_operator.core.conditions import FINISHED
from compression_operator.core.controller import Conflict
from compression_operator.core.jobs import RunEvent
from compression_operator.core.managers import Manager
from compression_operator.core.phase_steps import STEPS
from compression_operator.core.plan import discovered_in, plan_of
from compression_operator.core.problems import UNREADABLE, Problem, with_problem
from compression_operator.kube.cache import Body, Cache, Key
from compression_operator.kube.client import RUNS, ApiError, Kube

from .served_schema import OutdatedCRD, decisive

AGAIN = timedelta(hours=1)
"""After which an unfinished run that is another installation's is told of again: Events last as long by default."""


class UnreadableRun(Exception):
    """The stored resource is not a CompressionRun that this version of the operator understands."""

    @property
    def problem(self) -> Problem:
        """What to tell the user."""
        return Problem(UNREADABLE, f"this operator does not understand {self}; edit the run, or upgrade the operator")


class ClusterRuns:
    """Runs of the watched namespaces (see controller.Runs)."""

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        *,
        image: str,
        policy: TemplatePolicy = ANYBODYS,
        manager: Manager | None = None,
        lacks: Callable[[], Sequence[str]] = tuple,
        left_alone: Callable[[ObjectMeta, RunEvent], None] = lambda about, event: None,
        written: Callable[[CompressionRunStatus, CompressionRunStatus], None] = lambda before, after: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`image`: of the jobs of runs that name none, when they are first looked at; `policy`: which others they may
        name. `lacks`: fields that the cluster's CRD is known not to have. `left_alone` is told of each run that another
        installation than `manager` looks after, time and again while it is unfinished; `written` of every status that
        was replaced: what was stored before, and what is now.
        """
        self._kube = kube
        self._cache = cache
        self._image = image
        self._policy = policy
        self._manager = manager
        self._lacks = lacks
        self._left_alone = left_alone
        self._others: dict[Key, tuple[str, datetime]] = {}  # runs left alone: whose they are, and when that was told
        self._written = written
        self._now = now
        # Without the JSON that they were read from: the answer to a write is twice what the cache keeps of it.
        self._parsed: dict[Key, CompressionRun] = {}

    async def keys(self) -> list[str]:
        """Every run that is known."""
        for key in [key for key in self._parsed if self._cache.get(*key) is None]:
            del self._parsed[key]
        for key in [key for key in self._others if self._cache.get(*key) is None]:
            del self._others[key]
        return [f"{body['metadata']['namespace']}/{body['metadata']['name']}" for body in self._cache.all()]

    async def get(self, key: str) -> CompressionRun | None:
        """The newest known state of the run; None where it is gone, or another installation's. It is this one's from
        then on, which the status says before anything is made for the run.

        Raises UnreadableRun, OutdatedCRD where the status cannot hold what is decided by, Conflict and ApiError.
        """
        namespace, _, name = key.partition("/")
        body = self._cache.get(namespace, name)
        if body is None:
            return None
        other = self._others_manager(body)
        if self._manager is None or other is None:
            self._others.pop((namespace, name), None)
            return await self._claimed(self._read((namespace, name), body), body)
        waits, now = body["status"].get("phase") not in FINISHED, self._now()
        known, told = self._others.get((namespace, name), (None, now))
        if known != other or (waits and now - told >= AGAIN):
            self._others[namespace, name] = other, now
            self._left_alone(ObjectMeta.model_validate(body["metadata"]), self._manager.left_alone(other, waits=waits))
        return None

    async def _claimed(self, run: CompressionRun, body: Body) -> CompressionRun | None:
        """The run, whose status names this installation. One that is being deleted is nobody's to claim."""
        if run.metadata.deletion_timestamp is not None:
            return run
        if lost := decisive(self._lacks()):
            raise OutdatedCRD(lost)
        if self._manager is None or run.status.managed_by == self._manager.name:
            return run
        key = (run.metadata.namespace, run.metadata.name)
        status = self._manager.claimed(run.status)
        written = await self._write(key, body, status.to_json(), run.metadata.resource_version)
        if written is None:
            return None
        if not written.get("status", {}).get("managedBy"):
            raise OutdatedCRD(["status.managedBy"])
        return self._read(key, written)

    def meta(self, key: str) -> ObjectMeta | None:
        """The metadata of a run, which can be read where the rest cannot."""
        namespace, _, name = key.partition("/")
        body = self._cache.get(namespace, name)
        return ObjectMeta.model_validate(body["metadata"]) if body is not None else None

    def readable(self) -> Iterator[CompressionRun]:
        """Every run that can be read, others' left out."""
        for body in self._cache.all():
            if self._others_manager(body) is not None:
                continue
            try:
                yield self._read((body["metadata"]["namespace"], body["metadata"]["name"]), body)
            except UnreadableRun:
                continue

    def unreadable(self) -> int:
        """How many runs there are that cannot be read."""
        return len(self._cache) - self.others() - sum(1 for _ in self.readable())

    def others(self) -> int:
        """How many runs are left alone, because another installation looks after them."""
        return sum(self._others_manager(body) is not None for body in self._cache.all())

    def _others_manager(self, body: Body) -> str | None:
        return self._manager.other(body) if self._manager is not None else None

    async def write_status(self, run: CompressionRun, status: CompressionRunStatus) -> CompressionRun:
        """Replace the status; Conflict where the run has changed since it was read.

        A run that is gone by now has no status to write: that is no error.
        """
        key = (run.metadata.namespace, run.metadata.name)
        known = self._cache.get(*key)
        if known is None:
            return run
        written = await self._write(key, known, status.to_json(), run.metadata.resource_version)
        if written is None:
            return run
        self._written(run.status, status)
        return self._read(key, written)

    async def write_problem(self, key: str, problem: Problem, now: datetime) -> bool:
        """Write into the run's conditions what keeps it from being looked after; whether that was news.

        Raises Conflict and ApiError.
        """
        namespace, _, name = key.partition("/")
        known = self._cache.get(namespace, name)
        if known is None or "deletionTimestamp" in known["metadata"] or self._others_manager(known) is not None:
            return False
        before: Body = known.get("status") or {}
        status = with_problem(before, problem, generation=known["metadata"].get("generation", 0), now=now)
        if status == before:
            return False
        await self._write((namespace, name), known, status, known["metadata"]["resourceVersion"])
        return True

    async def _write(self, key: Key, known: Body, status: Body, version: str) -> Body | None:
        """Replace the status of a run as of `version`; None where it is gone."""
        body: dict[str, Any] = {
            **known,
            "status": status,
            "metadata": {**known["metadata"], "resourceVersion": version},
        }
        try:
            written = await self._kube.replace(RUNS, *key, body, subresource="status")
        except ApiError as error:
            if error.code == 404:
                return None
            if error.code == 409:
                await self._read_again(key)
                raise Conflict(str(error)) from error
            raise
        self._cache.put(written)
        return written

    async def _read_again(self, key: Key) -> None:
        """Ask for the newest state, because the cache is behind."""
        try:
            self._cache.put(await self._kube.get(RUNS, *key))
        except ApiError as error:
            # A 409 also says that the run was deleted and made anew under its name; a later event tells.
            if error.code != 404:
                raise

    def _read(self, key: Key, body: Body) -> CompressionRun:
        known = self._parsed.get(key)
        if known is not None and known.metadata.resource_version == body["metadata"].get("resourceVersion", ""):
            return known
        run = self._parsed[key] = with_image(parse(body), self._image, self._policy)
        return run


def with_image(run: CompressionRun, default: str, policy: TemplatePolicy = ANYBODYS) -> CompressionRun:
    """The run with its jobs' image in the status: the one that it names, else the one that it has had so far, else
    `default`, the operator's of today. One that the policy refuses is not remembered: the run may name it no longer.

    After an edit that plans a step anew it is `default` too: an older image may not know what the edit asks for.
    """
    named = run.spec.job_template.image
    so_far = None if starts_anew(run) else run.status.image
    image = (named if named and policy.takes(named) else None) or so_far or default
    return run.model_copy(update={"status": run.status.model_copy(update={"image": image})})


def starts_anew(run: CompressionRun) -> bool:
    """Whether an edit that the status does not know of yet plans a step anew. A run without steps was never planned, so
    nothing of it was edited. While the sources are looked at no later step is planned yet, so any edit counts.
    A step that may do without another's result has another fingerprint if it did, and follows the others.
    """
    status = run.status
    if not status.steps or status.observed_generation == run.metadata.generation:
        return False
    known = {step.name: step.fingerprint for step in status.steps}
    planned = plan_of(run, discovered=discovered_in(status)).steps
    return any(
        step.fingerprint is None or step.fingerprint != known.get(step.name)
        for step in planned
        if not STEPS[step.phase].spares
    )


def parse(body: Body) -> CompressionRun:
    """The resource as a model. Raises UnreadableRun, which names the first field that is wrong."""
    try:
        return cluster_run(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise UnreadableRun(f"{path} ({first['msg']})") from error
