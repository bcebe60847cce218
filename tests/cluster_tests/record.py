"""Records what a real cluster tells of PyTorchJobs that end in every way.

Run as `PYTHONPATH=. python tests/cluster_tests/record.py KUBECONFIG [CASE...]` against a cluster of `make cluster`.

Writes tests/operator/recorded/<case>.json: the states of the job and of its pods in the order in which they came, with
what observing does not read left out. Run it anew after a change of Kubernetes' or the training operator's version.
`node-lost` is recorded only where it is asked for: it takes away the cluster's node for a minute.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import urllib3
from api import JOBS, Api, Body
from nodes import GIVEN_UP_SOON, bystander, cut_power, silent_node
from tests.cluster.paths import State
from tests.support.waiting import until

from compression_operator.backends.observe import seen_job
from compression_operator.backends.pods.podview import seen_pod
from compression_operator.backends.pytorchjob.kind import PYTORCHJOB

TARGET = Path(__file__).parents[1] / "operator" / "recorded"
NAMESPACE = "recorded"
BUSYBOX = "localhost/busybox:1"
UID = "11111111-2222-3333-4444-555555555555"


def says(exit_class: str, code: int, message: str = "") -> str:
    told = json.dumps({"class": exit_class, "message": message, "result": {"key": "k"}})
    return f"echo '{told}' > /dev/termination-log; exit {code}"


STOPPED = f"stop() {{ sleep 2; {says('Interrupted', 143, 'a checkpoint is written')}; }}; trap stop TERM; "
GOES_ON = STOPPED + "i=0; while [ $i -lt 600 ]; do sleep 0.1; i=$((i+1)); done"


def pause(seconds: float) -> Callable[[], bool]:
    return lambda: time.sleep(seconds) is None


def after(seconds: float, act: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: (time.sleep(seconds), act())


def job(name: str, master: str, worker: str | None = None, **pod: Any) -> Body:
    def replica(script: str) -> Body:
        container: Body = {"name": "pytorch", "image": BUSYBOX, "command": ["sh", "-c", script]}
        container["terminationMessagePolicy"] = "FallbackToLogsOnError"
        container |= pod.get("container", {})
        spec = {"containers": [container], "terminationGracePeriodSeconds": 20, **pod.get("spec", {})}
        template = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "compression-operator"}}, "spec": spec}
        return {"replicas": 1, "restartPolicy": "Never", "template": template}

    labels = {"step": "distill-width", "fingerprint": "ab" * 16, "attempt": "1", "run": "demo"}
    owner = {"apiVersion": "modelcompression.io/v1alpha1", "kind": "CompressionRun", "name": "demo", "uid": UID}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {
            "name": name,
            "labels": {f"modelcompression.io/{k}": v for k, v in labels.items()},
            "annotations": {"kept": "for no owner of this name exists"},
            "ownerReferences": [owner | {"controller": True}],
        },
        "spec": {
            "nprocPerNode": "1",
            "runPolicy": {"cleanPodPolicy": "Running"},
            "pytorchReplicaSpecs": {"Master": replica(master)} | ({"Worker": replica(worker)} if worker else {}),
        },
    }


class Recorder:
    def __init__(self, kubeconfig: Path, only: list[str]) -> None:
        self.only = only
        self.api = Api(kubeconfig)
        self.events: list[tuple[str, str, Body]] = []
        pods, jobs = f"/api/v1/namespaces/{NAMESPACE}/pods", f"{JOBS}/namespaces/{NAMESPACE}/pytorchjobs"
        if self.api.get(f"/api/v1/namespaces/{NAMESPACE}") is None:
            self.api.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        for path, kind in ((jobs, "job"), (pods, "pod")):
            threading.Thread(target=self.watch, args=(path, kind), daemon=True).start()
        time.sleep(1)

    def watch(self, path: str, kind: str) -> None:
        pool = urllib3.PoolManager(ca_cert_data=self.api.authority)
        answer = pool.request(
            "GET",
            f"{self.api.server}{path}?watch=1",
            headers=self.api.headers,
            preload_content=False,
            timeout=urllib3.Timeout(read=3600),
        )
        for line in answer:
            event = json.loads(line)
            self.events.append((kind, event["type"], event["object"]))

    def of(self, name: str) -> list[tuple[str, str, Body]]:
        def belongs(kind: str, body: Body) -> bool:
            meta = body["metadata"]
            label = meta.get("labels", {}).get("training.kubeflow.org/job-name")
            return meta["name"] == name if kind == "job" else label == name

        return [(kind, what, body) for kind, what, body in list(self.events) if belongs(kind, body)]

    def has(self, name: str, condition: str) -> Callable[[], bool]:
        def there() -> bool:
            conditions = [
                c
                for kind, _, body in self.of(name)[::-1]
                if kind == "job"
                for c in (body.get("status") or {}).get("conditions") or ()
            ]
            return any(c["type"] == condition and c["status"] == "True" for c in conditions)

        return there

    def pod(self, name: str, phase: str) -> Callable[[], bool]:
        def there() -> bool:
            return any(body["status"].get("phase") == phase for kind, _, body in self.of(name) if kind == "pod")

        return there

    def pod_to_go(self, name: str) -> Callable[[], bool]:
        return lambda: any("deletionTimestamp" in body["metadata"] for kind, _, body in self.of(name) if kind == "pod")

    def without_pods(self, name: str) -> Callable[[], bool]:
        return lambda: any(what == "DELETED" for kind, what, _ in self.of(name) if kind == "pod")

    def record(self, body: Body, *acts: tuple[Callable[[], Any], Callable[[], Any]], end: Callable[[], Any]) -> None:
        name = body["metadata"]["name"]
        if self.only and name not in self.only:
            return
        # The owner does not exist: the garbage collector would take the job at once. So it comes without, and is given
        # its owner in the recording.
        owners = body["metadata"].pop("ownerReferences")
        self.api.create(f"{JOBS}/namespaces/{NAMESPACE}/pytorchjobs", body)
        try:
            for condition, act in acts:
                until(condition, f"{name}: {act}")
                act()
            until(end, f"{name} to end")
            time.sleep(3)
        except TimeoutError as error:
            sys.stderr.write(f"{error}\n")
        self.api.delete(f"{JOBS}/namespaces/{NAMESPACE}/pytorchjobs/{name}")
        states: list[Body] = []
        for kind, what, seen in self.of(name):
            if kind == "job":
                seen["metadata"]["ownerReferences"] = owners
            kept = seen_job(PYTORCHJOB, seen) if kind == "job" else seen_pod(seen)
            if [kind, kept] not in [[s["kind"], s["object"]] for s in states] or what == "DELETED":
                states.append({"kind": kind, "event": what, "object": kept})
        TARGET.mkdir(exist_ok=True)
        (TARGET / f"{name}.json").write_text(json.dumps(states, indent=1) + "\n")
        sys.stderr.write(f"{name}: {len(states)} states\n")

    def delete_pod(self, name: str, **options: Any) -> Callable[[], None]:
        return lambda: self.api.delete(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}", **options)

    def evict(self, pod: str) -> Callable[[], Any]:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
        return lambda: self.api.create(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction", body)

    def suspend(self, name: str, value: bool) -> Callable[[], Any]:
        path = f"{JOBS}/namespaces/{NAMESPACE}/pytorchjobs/{name}"
        return lambda: self.api.merge(path, {"spec": {"runPolicy": {"suspend": value}}})


def lose_node(api: Api, state: State, pod: str, stack: ExitStack) -> Callable[[], None]:
    def lose() -> None:
        stack.enter_context(bystander(api))
        stack.enter_context(silent_node(state))
        cut_power(state, pod)

    return lose


def main(kubeconfig: Path, *only: str) -> None:
    r = Recorder(kubeconfig, list(only))
    long = "sleep 300"
    r.record(job("done", "sleep 1; " + says("Done", 0)), end=r.has("done", "Succeeded"))
    r.record(job("user-error", says("UserError", 64, "loss is NaN")), end=r.has("user-error", "Failed"))
    r.record(job("crash", "echo one >&2; echo 'Traceback: it broke' >&2; exit 1"), end=r.has("crash", "Failed"))
    for name, act in (
        ("deleted", r.delete_pod("deleted-master-0")),
        ("evicted", r.evict("evicted-master-0")),
        ("force-deleted", r.delete_pod("force-deleted-master-0", gracePeriodSeconds=0)),
    ):
        r.record(
            job(name, GOES_ON),
            (r.pod(name, "Running"), lambda act=act: (time.sleep(2), act())),
            end=pause(8),
        )
    broken = {"name": "broken", "image": BUSYBOX, "command": ["sh", "-c", "exit 3"]}
    r.record(job("init-failed", "true", spec={"initContainers": [broken]}), end=r.has("init-failed", "Failed"))
    limits = {"resources": {"limits": {"memory": "32Mi"}}}
    r.record(job("out-of-memory", "sleep 1; tail /dev/zero", container=limits), end=r.has("out-of-memory", "Failed"))
    gpus = {"resources": {"limits": {"nvidia.com/gpu": 8}}}
    r.record(job("unschedulable", "true", container=gpus), end=pause(5))
    r.record(job("no-image", "true", container={"image": "localhost/none:1"}), end=pause(40))
    secret = {"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]}
    r.record(job("no-secret", "true", container=secret), end=pause(8))
    resumes = {"suspended": r.without_pods("suspended"), "resumed-early": r.has("resumed-early", "Suspended")}
    for name, when in resumes.items():
        acts = (r.pod(name, "Running"), r.suspend(name, True)), (when, r.suspend(name, False))
        r.record(job(name, GOES_ON), *acts, end=pause(10))
    r.record(job("worker-failed", GOES_ON, says("Transient", 75, "a link broke")), end=r.has("worker-failed", "Failed"))
    r.record(job("worker-goes-on", "sleep 3; " + says("Done", 0), GOES_ON), end=r.has("worker-goes-on", "Succeeded"))
    low = {"spec": {"priorityClassName": "recorded-low"}, "container": {"resources": {"requests": {"cpu": "1500m"}}}}
    for name, value in (("low", 1), ("high", 1000)):
        path = "/apis/scheduling.k8s.io/v1/priorityclasses"
        if r.api.get(f"{path}/recorded-{name}") is None:
            r.api.create(path, {"metadata": {"name": f"recorded-{name}"}, "value": value})
    high = job("high", long, **{**low, "spec": {"priorityClassName": "recorded-high"}})

    def preempt() -> None:
        time.sleep(2)
        high["metadata"].pop("ownerReferences", None)
        r.api.create(f"{JOBS}/namespaces/{NAMESPACE}/pytorchjobs", high)

    if "node-lost" in only:
        with ExitStack() as stack:
            lose = lose_node(r.api, State.at(kubeconfig.parent), "node-lost-master-0", stack)
            lost = job("node-lost", GOES_ON, spec=GIVEN_UP_SOON)
            r.record(lost, (r.pod("node-lost", "Running"), lose), end=r.pod_to_go("node-lost"))
    r.record(job("preempted", GOES_ON, **low), (r.pod("preempted", "Running"), preempt), end=pause(10))
    r.api.delete(f"/api/v1/namespaces/{NAMESPACE}")
    for name in ("low", "high"):
        r.api.delete(f"/apis/scheduling.k8s.io/v1/priorityclasses/recorded-{name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
