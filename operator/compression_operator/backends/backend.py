"""Jobs on a cluster, of whatever kind: made by pure functions, seen through caches, spoken to through the API."""

import logging
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from compression_operator.api.run import GROUP, KIND, CompressionRun
from compression_operator.api.templates import TemplateRefused, image_findings, template_findings
from compression_operator.core.controller import Conflict
from compression_operator.core.jobs import Job, JobState, ObservedJob
from compression_operator.core.problems import blocks_no_deletion
from compression_operator.kube.cache import Body, Cache
from compression_operator.kube.client import ApiError, Kube, Resource
from compression_operator.kube.denied_permissions import Denials

from .kind import JobKind
from .kinds import KINDS, job_of, kind_of, kind_of_pod, kinds_for, pod_group
from .log_watcher import LogWatcher
from .observe import FirstPods, first_pods, lacks_pod, left_over, observe_job, seen_job
from .pods.fields import mapping
from .pods.jobpods import MANAGED_BY, MANAGER
from .pods.network_policy import NETWORK_POLICIES, network_policy
from .pods.platform_defaults import JobDefaults
from .pods.podview import seen_pod
from .pods.pvc_access_modes import ClaimAdvice
from .pods.refusals import PodRefusals

logger = logging.getLogger(__name__)

SELECTOR = f"{MANAGED_BY}={MANAGER}"
"""What the jobs and pods of all runs have in common; watches ask the API server for these alone."""


def job_group(body: Body) -> str | None:
    """Jobs by run: the namespace and the name of the run that controls it. Labels, which anybody edits, say less."""
    for owner in body["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == KIND and owner["apiVersion"].startswith(f"{GROUP}/"):
            return f"{body['metadata']['namespace']}/{owner['name']}"
    return None


def job_caches() -> dict[Resource, Cache]:
    """A cache for the jobs of each kind, by run."""
    return {kind.resource: Cache(job_group, keep=partial(seen_job, kind)) for kind in KINDS.values()}


def pod_cache() -> Cache:
    """A cache for their pods, by job."""
    return Cache(pod_group, keep=seen_pod)


def image_of(run: CompressionRun) -> str:
    """The image that the run's jobs get: the user's, else the one that was resolved when it was first looked at."""
    image = run.spec.job_template.image or run.status.image
    if image is None:
        raise ValueError(f"no image is known for run {run.metadata.name}")
    return image


def repository(image: str) -> str:
    """The image without its tag and digest: what the operator's own had in common before an upgrade, and has since."""
    return re.sub(r"(:[^/:@]+)?(@.*)?$", "", image)


def _is_others(kind: JobKind, run: CompressionRun, error: ApiError) -> bool:
    """Whether a kind is refused to us that the run does not name: the operator may be installed without it."""
    return error.denied and kind is not kind_of(run)


class ClusterBackend:
    """Backend of runs on a cluster (see core.jobs.Backend); `image` is the operator's own, which no policy refuses."""

    def __init__(
        self,
        kube: Kube,
        jobs: Mapping[Resource, Cache],
        pods: Cache,
        *,
        logs: LogWatcher,
        claims: ClaimAdvice,
        refusals: PodRefusals,
        defaults: JobDefaults,
        denials: Denials,
        image: str,
        now: Callable[[], datetime],
    ) -> None:
        """`jobs`: of every kind (see job_caches)."""
        self._kube = kube
        self._jobs = jobs
        self._pods = pods
        self._logs = logs
        self._claims = claims
        self._refusals = refusals
        self._defaults = defaults
        self._denials = denials
        self._image = image
        self._now = now
        self._first: dict[str, FirstPods] = {}  # by UID of the job
        self._missed: dict[str, datetime] = {}  # by UID of the job: since when it lacks a pod that it had
        self._taken: dict[str, set[str]] = {}  # by UID of the run: names that others' jobs have

    async def observe(self, run: CompressionRun) -> list[ObservedJob]:
        """Every job of the run, from the cache; has the logs of those that run looked at.

        A job that is missed there is asked for: it may be out of the watch's sight, for somebody changed its labels.
        """
        namespace, now = run.metadata.namespace, self._now()
        await self._claims.refresh(run)
        key = f"{namespace}/{run.metadata.name}"
        bodies = [(kind, body) for kind in kinds_for(run) for body in self._jobs[kind.resource].members(key)]
        known = {body["metadata"]["name"] for _, body in bodies}
        missed = {step.job_name: step.state.active for step in run.status.steps if step.job_name not in {*known, None}}
        left = {name: self._left_over(namespace, name, now) for name in missed if name}
        wanted = {name for name, gone in left.items() if missed[name] or gone is not None}
        unseen = await self._unseen(run, (wanted | self._taken.get(run.metadata.uid, set())) - known)
        progress = {step.job_name: step.progress for step in run.status.steps}
        found: list[ObservedJob] = []
        running: dict[str, str] = {}
        for kind, body in (*bodies, *unseen.values()):
            name, uid = body["metadata"]["name"], body["metadata"]["uid"]
            pods = self._pods.members(f"{namespace}/{name}")
            # While something was asked for: what was remembered is forgotten.
            gone_since = self._jobs[kind.resource].has_gone(uid)
            first = first_pods(kind, body, pods, self._first.get(uid, {}))
            lacking = self._missed.get(uid, now) if lacks_pod(kind, body, pods, first) else None
            if not gone_since:
                self._first[uid] = first
                self._missed.pop(uid, None)
                if lacking is not None:
                    self._missed[uid] = lacking
            job = observe_job(kind, body, pods, run_uid=run.metadata.uid, now=now, first=first, missed=lacking)
            job = await self._refusals.explain_wait(job, kind, namespace, uid, now)
            if job.state is JobState.RUNNING and job.ours and job.pod is not None and not gone_since:
                running[uid] = job.pod
            found.append(self._logs.with_progress(job, uid, progress.get(name), now))
        self._logs.follow(key, running)
        return [*found, *(gone for name, gone in left.items() if gone is not None and name not in unseen)]

    async def create(self, run: CompressionRun, job: Job) -> None:
        """Create the job. Where one of that name exists it is taken for ours if its labels and owner say so;
        else Conflict is raised, and from then on `observe` shows it. Raises TemplateRefused.
        """
        namespace, kind = run.metadata.namespace, kind_of(run)
        context = {"run": f"{namespace}/{run.metadata.name}", "step": job.step, "job": job.name}
        image, policy = image_of(run), self._defaults.policy
        refused = list(template_findings(run.spec.to_json(), policy))
        if not refused and repository(image) != repository(self._image):
            refused = list(image_findings(image, "status.image", policy))
        if refused:
            raise TemplateRefused(refused)
        if self._defaults.network_policy:
            await self._keep_apart(run, job)
        try:
            body = await self._created(kind, namespace, kind.build(run, job, image, self._defaults))
            logger.info("created attempt %d of %s", job.attempt, job.step, extra=context)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            body = await self._existing_job(kind, namespace, job.name)
            if not observe_job(kind, body, (), run_uid=run.metadata.uid, now=self._now()).ours:
                self._taken.setdefault(run.metadata.uid, set()).add(job.name)
                logger.warning("the name of the job is taken by one of another owner", extra=context)
                # No watch will tell of it, and the status must not say that the step is under way.
                raise Conflict(f"job {job.name} is another owner's") from error
        # Without this the next pass, before the watch tells of the job, would miss it.
        self._remember(kind, body)

    async def _created(self, kind: JobKind, namespace: str, manifest: dict[str, Any]) -> Body:
        """Create the job, owned in a way that a foreground deletion of the run waits for it where that is allowed."""
        loss = "a foreground deletion of a run does not wait for its jobs"
        try:
            with self._denials.note_denial(namespace, loss, blocks_no_deletion):
                return await self._kube.create(kind.resource, namespace, manifest)
        except ApiError as error:
            if not blocks_no_deletion(error):
                raise
        for owner in manifest["metadata"]["ownerReferences"]:
            owner.pop("blockOwnerDeletion", None)
        return await self._kube.create(kind.resource, namespace, manifest)

    async def _keep_apart(self, run: CompressionRun, job: Job) -> None:
        """Have the job's network policy there before its pods are."""
        try:
            await self._kube.create(NETWORK_POLICIES, run.metadata.namespace, network_policy(run, job))
        except ApiError as error:
            if error.reason != "AlreadyExists" and not error.namespace_gone:
                raise

    async def _existing_job(self, kind: JobKind, namespace: str, name: str) -> Body:
        """The job whose name is taken. Raises Conflict where it has gone since."""
        try:
            return await self._kube.get(kind.resource, namespace, name)
        except ApiError as error:
            if error.code != 404:
                raise
            raise Conflict(f"job {name} was there and is gone") from error

    async def delete(self, run: CompressionRun, name: str) -> bool:
        """Delete the job; it stays in sight, being deleted, until its pods are gone (foreground deletion). Whether
        there was one.
        """
        namespace, kinds = run.metadata.namespace, kinds_for(run)
        seen = [kind for kind in kinds if self._jobs[kind.resource].get(namespace, name)]
        for kind in seen or kinds:
            body = self._jobs[kind.resource].get(namespace, name)
            uid = body["metadata"]["uid"] if body else None
            try:
                going = await self._kube.delete(kind.resource, namespace, name, uid=uid, propagation="Foreground")
            except ApiError as error:
                if body is not None or not _is_others(kind, run, error):
                    raise
                continue
            if going is not None:
                self._remember(kind, going)
                return True
        return False

    def job_of_pod(self, pod: Body) -> Body | None:
        """The job that a pod names as its own, where it is known."""
        kind = kind_of_pod(pod)
        return None if kind is None else self._jobs[kind.resource].get(*job_of(pod))

    def forget_job(self, body: Body) -> None:
        """A job is gone: so is what was remembered of it."""
        self._first.pop(body["metadata"].get("uid", ""), None)
        self._missed.pop(body["metadata"].get("uid", ""), None)
        self._logs.forget(body["metadata"].get("uid", ""))
        self._refusals.forget(body["metadata"].get("uid", ""))

    def forget_run(self, body: Body) -> None:
        """A run is gone: nobody asks for its jobs' logs any more."""
        meta = body["metadata"]
        self._logs.follow(f"{meta['namespace']}/{meta['name']}", {})
        self._taken.pop(meta.get("uid", ""), None)

    def _remember(self, kind: JobKind, body: Body) -> None:
        """Take note of a job that the watch will go on telling of; another one is asked for when it is looked at."""
        if mapping(body, "metadata", "labels").get(MANAGED_BY) == MANAGER:
            self._jobs[kind.resource].put(body)

    async def _unseen(self, run: CompressionRun, names: set[str]) -> dict[str, tuple[JobKind, Body]]:
        """Jobs that are there and that no watch tells of, by name: others' jobs under names that this run needs, its
        own without our label, and those that the watch has not told of yet.
        """
        found: dict[str, tuple[JobKind, Body]] = {}
        for name in sorted(names):
            for kind in kinds_for(run):
                try:
                    body = await self._kube.get(kind.resource, run.metadata.namespace, name)
                except ApiError as error:
                    if error.code != 404 and not _is_others(kind, run, error):
                        raise
                    continue
                self._remember(kind, body)
                found[name] = kind, self._jobs[kind.resource].keep(body)
                break
            else:
                self._taken.get(run.metadata.uid, set[str]()).discard(name)
        return found

    def _left_over(self, namespace: str, name: str, now: datetime) -> ObservedJob | None:
        """A job of that name which is gone while pods of it still write a checkpoint."""
        pods = self._pods.members(f"{namespace}/{name}")
        kind = kind_of_pod(pods[0]) if pods else None
        return left_over(kind, pods, now) if kind is not None else None
