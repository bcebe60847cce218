"""What is remembered of jobs goes with them, whenever they go."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import kopf
from http_server import Answer, served
from jobs_world import World
from looks import at
from recordings import Body
from recordings import states as recorded

from compression_operator.api.run import GROUP, KIND
from compression_operator.backends.backend import ClusterBackend, job_group
from compression_operator.backends.kinds import pod_group
from compression_operator.backends.log_watcher import LogWatcher
from compression_operator.backends.observe import seen_job
from compression_operator.backends.pods.platform_defaults import PLAIN
from compression_operator.backends.pods.podview import PATIENCE, seen_pod
from compression_operator.backends.pods.pvc_access_modes import ClaimAdvice
from compression_operator.backends.pods.refusals import PodRefusals
from compression_operator.backends.pytorchjob.kind import JOB_NAME, PYTORCHJOB, PYTORCHJOBS
from compression_operator.kube.cache import Cache
from compression_operator.kube.client import Kube
from compression_operator.kube.denied_permissions import Denials


def test_a_job_that_goes_while_another_one_is_asked_for_is_not_remembered() -> None:
    run = at(World()).run  # its job is in nobody's sight, so that it is asked for
    (missed,) = [step.job_name for step in run.status.steps if step.job_name]
    states = recorded("done")
    job: Body = next(s["object"] for s in reversed(states) if s["kind"] == "job" and s["event"] != "DELETED")
    pod: Body = next(s["object"] for s in states if s["kind"] == "pod")
    meta, owner = job["metadata"], {"apiVersion": f"{GROUP}/v1alpha1", "kind": KIND, "controller": True}
    meta["ownerReferences"] = [{**owner, "name": run.metadata.name, "uid": run.metadata.uid}]
    meta["namespace"] = pod["metadata"]["namespace"] = run.metadata.namespace
    pod["metadata"]["labels"][JOB_NAME] = meta["name"]
    jobs, pods = Cache(job_group, keep=partial(seen_job, PYTORCHJOB)), Cache(pod_group, keep=seen_pod)
    denials = Denials(lambda _: None)
    now = datetime(2026, 11, 21, tzinfo=UTC) + timedelta(days=1)

    async def scenario(url: str, gone: threading.Event) -> dict[str, object]:
        kube = Kube(lambda: kopf.ConnectionInfo(server=url))
        logs = LogWatcher(kube, lambda _: None, denials=denials)
        more: dict[str, Any] = {"claims": ClaimAdvice(kube, denials), "refusals": PodRefusals(kube, denials)}
        more["denials"] = denials
        backend = ClusterBackend(
            kube, {PYTORCHJOBS: jobs}, pods, logs=logs, defaults=PLAIN, image="x", **more, now=lambda: now
        )
        loop = asyncio.get_running_loop()

        def go() -> None:
            assert jobs.remove(job)
            backend.forget_job(job)
            gone.set()

        def answer(_: str, path: str) -> Answer:
            if path.endswith(missed):
                loop.call_soon_threadsafe(go)
                gone.wait(60)
            return 404, {"kind": "Status", "reason": "NotFound", "message": "not found"}, {}

        server.answer = answer
        jobs.put(job)
        pods.put(pod)
        found = await backend.observe(run)
        assert [one.name for one in found] == [meta["name"]], "as it was when the pass began"
        await logs.close()
        await kube.close()
        return dict(backend._first)  # memory, which nothing else shows

    with served() as (server, url):
        assert asyncio.run(scenario(url, gone := threading.Event())) == {} and gone.is_set()


def test_since_when_a_pod_is_missing_is_remembered_until_it_is_there() -> None:
    run = at(World()).run
    (name,) = [step.job_name for step in run.status.steps if step.job_name]
    states = recorded("force-deleted")
    job = next(s["object"] for s in states if s["kind"] == "job" and is_running(s["object"]))
    pod = next(s["object"] for s in states if s["kind"] == "pod" and s["object"]["status"]["phase"] == "Running")
    owner = {"apiVersion": f"{GROUP}/v1alpha1", "kind": KIND, "controller": True}
    job["metadata"] |= {"name": name, "namespace": run.metadata.namespace}
    job["metadata"]["labels"][f"{GROUP}/run"] = run.metadata.name
    job["metadata"]["ownerReferences"] = [{**owner, "name": run.metadata.name, "uid": run.metadata.uid}]
    pod["metadata"]["namespace"] = run.metadata.namespace
    pod["metadata"]["labels"][JOB_NAME] = name
    jobs, pods = Cache(job_group, keep=partial(seen_job, PYTORCHJOB)), Cache(pod_group, keep=seen_pod)
    times = [datetime(2026, 11, 21, tzinfo=UTC) + timedelta(hours=hours) for hours in range(24, 29)]
    clock = iter(times)

    async def scenario() -> list[datetime | None]:
        kube = Kube(lambda: kopf.ConnectionInfo(server="http://127.0.0.1:1"))  # nobody is asked
        denials = Denials(lambda _: None)
        logs = LogWatcher(kube, lambda _: None, denials=denials)
        more: dict[str, Any] = {"claims": ClaimAdvice(kube, denials), "refusals": PodRefusals(kube, denials)}
        more["denials"] = denials
        backend = ClusterBackend(
            kube, {PYTORCHJOBS: jobs}, pods, logs=logs, defaults=PLAIN, image="x", **more, now=lambda: next(clock)
        )
        jobs.put(job)
        found: list[datetime | None] = []
        for there in (True, False, False, True, False):
            if there:
                pods.put(pod)
            else:
                pods.forget(run.metadata.namespace)
            [one] = await backend.observe(run)
            found.append(one.waiting.counts_from if one.waiting else None)
        await logs.close()
        await kube.close()
        return found

    assert asyncio.run(scenario()) == [None, times[1] + PATIENCE, times[1] + PATIENCE, None, times[4] + PATIENCE]


def is_running(job: Body) -> bool:
    return any(c["type"] == "Running" and c["status"] == "True" for c in job["status"].get("conditions", ()))
