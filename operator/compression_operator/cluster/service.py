"""The operator as one process: caches, controller, leader election, events, endpoints, put together and taken down."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime

from compression_operator.api.run import GROUP, CompressionRun, ObjectMeta
from compression_operator.backends.backend import ClusterBackend, job_caches, job_group, pod_cache
from compression_operator.backends.log_watcher import LogWatcher
from compression_operator.backends.pods.jobpods import label_value
from compression_operator.backends.pods.pvc_access_modes import ClaimAdvice
from compression_operator.backends.pods.refusals import PodRefusals, with_early_recheck
from compression_operator.core.controller import Conflict, Controller
from compression_operator.core.jobs import Decision, ObservedJob, RunEvent
from compression_operator.core.problems import Circumstances, Problem, add_circumstances
from compression_operator.core.reconcile import reconcile
from compression_operator.kube.cache import Body, Cache
from compression_operator.kube.client import PODS, RUNS, ApiError, Kube, NotLeading, Resource
from compression_operator.kube.denied_permissions import Denials
from compression_operator.kube.leader import LeaderElection
from compression_operator.kube.login import connect

from .errors import PERSISTENT, FailedPass, RunErrors, creation_failure, is_internal
from .events import EventRecorder
from .health import Probes
from .metrics import Metrics
from .options import Options
from .resync import Resync
from .runs import ClusterRuns
from .secure_metrics import listen
from .served_schema import ServedSchema

logger = logging.getLogger(__name__)

CHORES = 1000
"""Events and the like that wait to be written; more are dropped, because they are never worth memory without end."""

DRAIN_SECONDS = 10.0
"""Time for passes under way to end once the operator is told to stop."""

TELLING_SECONDS = 1.0
"""Time for what they had to tell to be written, after that."""

SYNC_PAUSE_SECONDS = 2.0
DENIED_PAUSE_SECONDS = 30.0
"""Longest pause between two looks at a cluster of which nothing may be seen yet; the first is SYNC_PAUSE_SECONDS."""


class Service:
    """The operator. `note_event` takes what the watches tell; `run` works until `stop`."""

    def __init__(self, options: Options) -> None:
        self._options = options
        jobs = job_caches()
        runs = Cache(lambda body: f"{body['metadata']['namespace']}/{label_value(body['metadata']['name'])}")
        self._caches: Mapping[Resource, Cache] = {RUNS: runs, **jobs, PODS: pod_cache()}
        self._unsynced: str | None = "the first look at the cluster is not done yet"
        self._unwatched: str | None = "the watches are not open yet"
        self._look = asyncio.Event()  # at the cluster, now and not when the period is over
        self.resources_returned = asyncio.Event()
        """Set when there is a resource that the cluster did not know before: kopf asks once, when it starts."""
        self._stopping = asyncio.Event()
        self._controlling: asyncio.Task[None] | None = None
        self._chores: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue(CHORES)
        self._metrics = Metrics(
            lambda: self._runs.readable(),
            lambda: self._controller.queue_depth,
            self._leads,
            per_run=options.per_run_metrics,
            unreadable=lambda: self._runs.unreadable(),
            others=lambda: self._runs.others(),
            denied=lambda: self._resync.denied(),
            outdated=lambda: bool(self._schema.lacks),
        )
        self._kube = Kube(connect, on_request=self._metrics.request, leads=self._leads)
        self._schema = ServedSchema(self._kube)
        self._resync = Resync(
            self._kube,
            self._caches,
            options.namespaces,
            changed=self._enqueue_owner,
            gone=self._forget_deleted,
            returned=self.resources_returned.set,
        )
        self.watched = self._resync.watched
        """What there is to be watched, by namespace; under None where that is the whole cluster."""
        self._election = LeaderElection(self._kube, options.lease_namespace, options.lease_name, options.identity)
        self._runs = ClusterRuns(
            self._kube,
            self._caches[RUNS],
            image=options.image,
            policy=options.jobs.policy,
            manager=options.manager,
            lacks=lambda: self._schema.lacks,
            left_alone=self._left_alone,
            written=self._metrics.written,
        )
        self._denials = Denials(self._enqueue_all)
        self._errors = RunErrors(_now)
        self._logs = LogWatcher(
            self._kube, self._enqueue, denials=self._denials, period_seconds=options.progress_seconds
        )
        self._claims = ClaimAdvice(self._kube, self._denials)
        self._backend = ClusterBackend(
            self._kube,
            jobs,
            self._caches[PODS],
            logs=self._logs,
            claims=self._claims,
            refusals=PodRefusals(self._kube, self._denials),
            defaults=options.jobs,
            denials=self._denials,
            image=options.image,
            now=_now,
        )
        self._recorder = EventRecorder(self._kube, instance=options.identity, now=_now, denials=self._denials)
        self._controller = Controller(
            self._runs,
            self._backend,
            self,
            reconcile=self._reconcile,
            now=_now,
            workers=options.workers,
            resync_seconds=options.resync_seconds,
            observe_seconds=self._metrics.reconcile_seconds.observe,
            least_pause=lambda error: error.retry_after if isinstance(error, ApiError) else 0.0,
            is_outage=lambda error: isinstance(error, ApiError) and error.transient,
            note_failed_deletions=self._errors.note_failed_deletions,
            note_success=self._errors.end_outage,
        )

    # -- what the watches tell ----------------------------------------------------------------------------------------

    def note_event(self, resource: Resource, kind: str | None, body: Body) -> None:
        """An event of a watch: `kind` is ADDED, MODIFIED, DELETED, or None for what was there at first."""
        self._resync.note_event(resource, kind, body)
        if kind == "DELETED":
            changed = self._caches[resource].remove(body)
            self._forget_deleted(resource, body)
        else:
            changed = self._caches[resource].put(body)
        if changed:
            self._enqueue_owner(resource, body)

    def note_watching(self, problem: str | None) -> None:
        """Why nothing is watched just now, None where all is: see kube.watching."""
        self._unwatched = problem
        if problem is not None:
            self._look.set()  # it may be the first sign of a resource that is gone

    def _forget_deleted(self, resource: Resource, body: Body) -> None:
        if resource == RUNS:
            self._backend.forget_run(body)
            key = f"{body['metadata']['namespace']}/{body['metadata']['name']}"
            self._errors.forget(key)
        elif resource != PODS:
            self._backend.forget_job(body)

    def _enqueue_owner(self, resource: Resource, body: Body) -> None:
        """Have the run looked at that an object belongs to."""
        meta = body["metadata"]
        if resource == RUNS:
            self._enqueue(f"{meta['namespace']}/{meta['name']}")
            return
        job = self._backend.job_of_pod(body) if resource == PODS else body
        if job is not None and (key := job_group(job)) is not None:
            self._enqueue(key)
            return
        # A pod of a job that is gone, or not known yet: its label says whose it was.
        label = meta.get("labels", {}).get(f"{GROUP}/run")
        for run in self._caches[RUNS].members(f"{meta['namespace']}/{label}"):
            self._enqueue(f"{meta['namespace']}/{run['metadata']['name']}")

    def _enqueue(self, key: str) -> None:
        # The controller starts with every run there is; before that nobody would take them from the queue.
        if self._controlling is not None:
            self._controller.enqueue(key)

    def _enqueue_all(self, namespace: str) -> None:
        for run in self._caches[RUNS].all():
            if run["metadata"]["namespace"] == namespace:
                self._enqueue(f"{namespace}/{run['metadata']['name']}")

    # -- the controller's questions and news (controller.Reconcile, controller.Listener) ------------------------------

    def _reconcile(
        self, run: CompressionRun, observed: Sequence[ObservedJob], now: datetime, unmade: Mapping[str, Exception]
    ) -> Decision:
        if run.metadata.deletion_timestamp is not None:
            return reconcile(run, observed, now)
        words = {name: creation_failure(error) for name, error in unmade.items()}
        decision = with_early_recheck(reconcile(run, observed, now, words), observed)
        key = run.metadata.key
        found = (self._errors.problem(key, error) for error in unmade.values())
        problems = [problem for problem in found if problem is not None]
        problems += self._errors.failed_deletions(key, decision)
        problem, denied = next(iter(problems), None), self._denials.sentences(run.metadata.namespace)
        known = Circumstances(problem, denied, self._claims.advice(run), advised=self._claims.was_reported(run))
        return add_circumstances(run, decision, known, now)

    def pass_succeeded(self, run: CompressionRun, decision: Decision) -> None:
        """Nothing to do: what a pass did is counted when it is written."""

    def report_event(self, run: CompressionRun, event: RunEvent) -> None:
        """Something worth telling: a log line and an Event."""
        self._claims.note_reported(run, event)
        self._report(run.metadata, event)

    def _left_alone(self, about: ObjectMeta, event: RunEvent) -> None:
        """Another installation looks after the run, and listens to its jobs."""
        self._logs.follow(about.key, {})
        self._report(about, event)

    def _report(self, about: ObjectMeta, event: RunEvent) -> None:
        level = logging.WARNING if event.type == "Warning" else logging.INFO
        context = {"run": about.key, "step": event.step, "job": event.job}
        logger.log(level, "%s", event.message, extra={**context, "reason": event.reason})
        self._queue_chore(lambda: self._recorder.record(about, event))

    def pass_failed(self, key: str, error: Exception, consecutive: int, *, in_status: bool) -> None:
        """A pass failed."""
        if isinstance(error, NotLeading):
            logger.info("%s", error, extra={"run": key})
            return
        if isinstance(error, ApiError) and error.namespace_gone:
            logger.info("its namespace is being deleted: %s", error, extra={"run": key})
            return
        if not (isinstance(error, ApiError) and error.transient):
            self._errors.end_outage(key)
        problem = self._errors.problem(key, error)
        kind = self._errors.classify(key, problem, consecutive)
        if kind is FailedPass.ERROR:
            self._metrics.reconcile_errors.inc()
            # A traceback helps with what nobody expected; the API server's refusals speak for themselves.
            traceback = error if is_internal(error) else None
            logger.error("pass failed (%d in a row): %s", consecutive, error, extra={"run": key}, exc_info=traceback)
        else:
            level = logging.WARNING if kind is FailedPass.WAIT else logging.DEBUG
            logger.log(level, "waits (%d passes in a row): %s", consecutive, error, extra={"run": key})
        if problem is not None and not in_status and (consecutive >= PERSISTENT or not is_internal(error)):
            self._queue_chore(lambda: self._report_problem(key, problem))

    def _queue_chore(self, chore: Callable[[], Awaitable[None]]) -> None:
        try:
            self._chores.put_nowait(chore)
        except asyncio.QueueFull:
            logger.warning("too many events wait to be written; one is dropped")

    async def _report_problem(self, key: str, problem: Problem) -> None:
        """Write the problem to the run's status, and an Event; an Event alone if the run cannot even take a status."""
        try:
            news = await self._runs.write_problem(key, problem, _now())
        except ApiError as error:
            if error.transient and not self._errors.note_reported(key):
                raise
            logger.warning("the problem cannot be written to its status: %s", error, extra={"run": key})
            news = True
        about = self._runs.meta(key)
        if news and about is not None:
            self._report(about, RunEvent("Warning", problem.reason, problem.message))

    async def _do_chores(self) -> None:
        while True:
            chore = await self._chores.get()
            try:
                await chore()
            except (ApiError, NotLeading, Conflict) as error:
                logger.warning("could not be told: %s", error)
            except Exception as error:
                # Whatever it is, it must not silence all that is to be told from now on.
                logger.error("could not be told: %s: %s", type(error).__name__, error, exc_info=error)
            finally:
                self._chores.task_done()

    # -- life ---------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End: passes under way go through, then the lease is given back."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve the endpoints, wait to lead, then reconcile until `stop`. Raises LeadershipLost and StateWentBack."""
        probes, options = Probes(self._live, self._ready, self._metrics.exposition), self._options
        first = asyncio.FIRST_COMPLETED
        server = await listen(probes, options.host, options.port, options.secure_metrics, self._metrics.request)
        chores = asyncio.create_task(self._do_chores(), name="chores")
        work = asyncio.create_task(self._work(), name="work")
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait((work, stop), return_when=first)
            self._controller.stop()
            if self._controlling is not None and not work.done():
                # The lease is still renewed meanwhile.
                await asyncio.wait((self._controlling, work), timeout=DRAIN_SECONDS, return_when=first)
                await asyncio.wait((asyncio.create_task(self._chores.join()),), timeout=TELLING_SECONDS)
        finally:
            for task in (work, stop, chores):
                task.cancel()
            await asyncio.gather(work, stop, chores, return_exceptions=True)
            await self._logs.close()
            await self._election.release()
            await server.aclose()
            await self._kube.close()
        if not work.cancelled():
            work.result()

    async def _work(self) -> None:
        await self._sync_until_done()
        await self._schema.refresh()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resync_forever(), name="resync-caches")
            if self._options.leader_election:
                await self._election.acquire()
                group.create_task(self._election.hold(), name="lease")
            # Whatever the leader before did last: a job of its that came and went must not be made again.
            await self._sync_until_done()
            self._controlling = group.create_task(self._controller.run(), name="controller")

    def _leads(self) -> bool:
        return self._election.leads or not self._options.leader_election

    def _live(self) -> str | None:
        return self._resync.find_silent(self._options.missed_seconds)

    def _ready(self) -> str | None:
        first = self._resync.unusable or self._schema.problem
        return first or self._unsynced or self._unwatched or self._election.problem

    async def _sync_until_done(self) -> None:
        """Compare the caches with the truth, trying again where the API server is away, or where nothing may be seen of
        any namespace: somebody may give the permission, or install the CRD, and until then /readyz says which.
        """
        pause = SYNC_PAUSE_SECONDS
        while True:
            try:
                await self._resync.compare(judge=self._unsynced is None)
            except ApiError as error:
                logger.warning("cannot list, trying again in %g s: %s", SYNC_PAUSE_SECONDS, error)
                await asyncio.sleep(max(SYNC_PAUSE_SECONDS, error.retry_after))
                continue
            if self._resync.unusable is None:
                break
            await asyncio.sleep(pause)
            pause = min(2 * pause, DENIED_PAUSE_SECONDS)
        self._unsynced = None

    async def _resync_forever(self) -> None:
        while True:
            period = self._options.resync_seconds
            if self._resync.unusable or self._schema.problem:  # whoever has just installed what is missing waits for it
                period = min(period, DENIED_PAUSE_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), period)
            self._look.clear()
            await self._schema.refresh()
            try:
                await self._resync.compare(judge=True)
            except ApiError as error:
                logger.warning("cannot list, trying again in %g s: %s", self._options.resync_seconds, error)


def _now() -> datetime:
    return datetime.now(UTC)
