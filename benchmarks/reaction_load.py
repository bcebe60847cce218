"""The load of reaction.py, a process of its own: users who make runs, and the cluster that carries their jobs out.

It plays kubelet and training operator before a real API server: each new PyTorchJob gets a pod that runs at once; a job
is completed by patching its pod's status (exit code 0, with the termination message that carries the phase's result)
and then its own (condition Succeeded). It takes the times: *job done* is when the API server has answered the pod's
patch, which is the first moment at which anybody can know; *next job created* is when the watch brings the new job's
ADDED event (creationTimestamp has whole seconds only).

Commands come on standard input, a JSON line each; every one is answered by a JSON line on standard output.
"""

import argparse
import base64
import http.client
import json
import queue
import random
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Body = dict[str, Any]

GROUP = "modelcompression.io"
RUNS = f"/apis/{GROUP}/v1alpha1"
JOBS = "/apis/kubeflow.org/v1"
MERGE = "application/merge-patch+json"
STUDENTS = ("width", "depth")
FOLLOWING = {
    "prepare": ("finetune",),
    "finetune": tuple(f"prune-{name}" for name in STUDENTS),
    **{f"prune-{name}": (f"distill-{name}",) for name in STUDENTS},
    **{f"distill-{name}": (f"export-{name}",) for name in STUDENTS},
    **{f"export-{name}": () for name in STUDENTS},
}
"""The steps that can start as soon as a step is done (maxParallelJobs is 2, as many as there are students)."""

HANDS = 16
PATIENCE_SECONDS = 300.0
IDLE_SECONDS = 30.0
"""A connection that was idle longer is not used again: the API server closes it after 90 s."""


class Api:
    """The API server of a kubeconfig with a token, over one connection for each thread."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        address = urlsplit(cluster["server"])
        self._host, self._port = str(address.hostname), address.port
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)
        self._headers = {"Authorization": f"Bearer {user['token']}", "Accept": "application/json"}
        self._local = threading.local()

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=PATIENCE_SECONDS)

    def call(self, method: str, path: str, body: Body | None = None, kind: str = "application/json") -> Any:
        """One request; the answer as JSON, or as text where it is none. Raises RuntimeError where it is refused."""
        connection, now = getattr(self._local, "connection", None), time.monotonic()
        if connection is None or now - self._local.used > IDLE_SECONDS:
            if connection is not None:
                connection.close()
            connection = self._local.connection = self.connect()
        self._local.used = now
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, self._headers | {"Content-Type": kind})
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text}")
        return json.loads(text) if text.startswith("{") else text

    def watch(self, path: str) -> http.client.HTTPResponse:
        """The open answer of a watch: one JSON line for each event."""
        connection = self.connect()
        connection.request("GET", path, headers=self._headers)
        return connection.getresponse()


class Load:
    """Runs that are kept active, and the jobs of theirs that run."""

    def __init__(self, api: Api, namespace: str, seed: int) -> None:
        self._api = api
        self._namespace = namespace
        self._jobs = f"{JOBS}/namespaces/{namespace}/pytorchjobs"
        self._random = random.Random(seed)  # noqa: S311 - which job ends next
        self._hands = ThreadPoolExecutor(HANDS)
        self._failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._changed = threading.Condition()
        # Below: guarded by _changed.
        self._running: list[Body] = []
        self._arrived: dict[tuple[str, str], float] = {}  # (run, step) -> when the watch told of its job
        self._done: dict[tuple[str, str], float] = {}  # (run, step) -> when the API server had answered
        self._left: dict[str, int] = {}  # steps that a run still has to do
        self._made = 0

    def start(self, runs: int) -> None:
        """Make runs, and wait until the first job of each runs."""
        # As of before the first run: a job that is made before it is watched for would never be heard of.
        version = self._api.call("GET", self._jobs)["metadata"]["resourceVersion"]
        threading.Thread(target=self._guarded, args=(self._watch, version), daemon=True).start()
        for _ in range(runs):
            self._hand(self._make_run)
        self._wait(lambda: len(self._running) >= runs)

    def pace(self, completions: int, rate: float) -> list[float]:
        """Complete so many jobs, `rate` a second, each one of those that run; the reactions in seconds."""
        before = self._mark()
        began = time.monotonic()
        for number in range(completions):
            pause = began + number / rate - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            self._wait(lambda: bool(self._running))
            with self._changed:
                job = self._running.pop(self._random.randrange(len(self._running)))
            self._hand(self._complete, job)
        return self._reactions(before, completions)

    def burst(self) -> list[float]:
        """Complete every job that runs, all at once; the reactions in seconds."""
        before = self._mark()
        self._wait(lambda: bool(self._running))  # the first job of a run that took another's place may be a while
        with self._changed:
            jobs, self._running = self._running, []
        for job in jobs:
            self._hand(self._complete, job)
        return self._reactions(before, len(jobs))

    # -- times --------------------------------------------------------------------------------------------------------

    def _mark(self) -> frozenset[tuple[str, str]]:
        with self._changed:
            return frozenset(self._done)

    def _reactions(self, before: frozenset[tuple[str, str]], completions: int) -> list[float]:
        """Wait until every job has come that had to follow; seconds from what completed to what was created."""

        def pairs() -> list[tuple[tuple[str, str], tuple[str, str]]]:
            ended = [mark for mark in self._done if mark not in before]
            return [(mark, (mark[0], step)) for mark in ended for step in FOLLOWING[mark[1]]]

        self._wait(lambda: len(self._done) - len(before) == completions)
        self._wait(lambda: all(following in self._arrived for _, following in pairs()))
        with self._changed:
            return [self._arrived[following] - self._done[mark] for mark, following in pairs()]

    def _wait(self, condition: Any) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        with self._changed:
            while not condition():
                if not self._failures.empty():
                    raise self._failures.get()
                if not self._changed.wait(min(0.5, max(end - time.monotonic(), 0))) and time.monotonic() > end:
                    raise TimeoutError(f"nothing went on for {PATIENCE_SECONDS:g} s")

    # -- what users do ------------------------------------------------------------------------------------------------

    def _make_run(self) -> None:
        with self._changed:
            self._made += 1
            name = f"run-{self._made:04}"
            self._left[name] = len(FOLLOWING)
        self._api.call("POST", f"{RUNS}/namespaces/{self._namespace}/compressionruns", manifest(name))

    # -- what kubelet and training operator do ------------------------------------------------------------------------

    def _watch(self, version: str) -> None:
        answer = self._api.watch(f"{self._jobs}?watch=1&resourceVersion={version}&timeoutSeconds=3600")
        while line := answer.readline():
            now = time.monotonic()
            if not line.startswith(b'{"type":"ADDED"'):
                continue
            job = json.loads(line)["object"]
            with self._changed:
                self._arrived[_mark_of(job)] = now
                self._changed.notify_all()
            self._hand(self._run_pod, job)
        raise RuntimeError("the watch of the jobs ended")

    def _run_pod(self, job: Body) -> None:
        meta = job["metadata"]
        template = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
        name = f"{meta['name']}-master-0"
        labels = {"training.kubeflow.org/job-name": meta["name"], "training.kubeflow.org/replica-type": "master"}
        owner = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": meta["name"], "uid": meta["uid"]}
        pod = {
            "metadata": {
                "name": name,
                "labels": template["metadata"]["labels"] | labels,
                "ownerReferences": [owner | {"controller": True}],
            },
            "spec": template["spec"] | {"restartPolicy": "Never"},
        }
        self._api.call("POST", f"/api/v1/namespaces/{self._namespace}/pods", pod)
        self._pod_status(name, "Running", {"running": {"startedAt": _now()}})
        self._job_status(meta["name"], "Created", "Running")
        with self._changed:
            self._running.append(job)
            self._changed.notify_all()

    def _complete(self, job: Body) -> None:
        meta = job["metadata"]
        labels = meta["labels"]
        result = result_of(labels[f"{GROUP}/phase"], labels[f"{GROUP}/fingerprint"])
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": meta["creationTimestamp"], "finishedAt": _now()}
        message = json.dumps({"class": "Done", "result": result})
        self._pod_status(f"{meta['name']}-master-0", "Succeeded", {"terminated": ended | {"message": message}})
        now = time.monotonic()
        run, step = _mark_of(job)
        with self._changed:
            self._done[run, step] = now
            self._left[run] -= 1
            over = not self._left[run]
            self._changed.notify_all()
        self._job_status(meta["name"], "Created", "Running", "Succeeded")
        if over:  # another one takes its place, so that as many are active
            self._make_run()

    def _pod_status(self, name: str, phase: str, state: Body) -> None:
        container = {"name": "pytorch", "ready": False, "restartCount": 0, "image": "x", "imageID": "", "state": state}
        body = {"status": {"phase": phase, "containerStatuses": [container]}}
        self._api.call("PATCH", f"/api/v1/namespaces/{self._namespace}/pods/{name}/status", body, MERGE)

    def _job_status(self, name: str, *conditions: str) -> None:
        told = [{"type": kind, "status": "True", "lastTransitionTime": _now()} for kind in conditions]
        body = {"status": {"conditions": told, "replicaStatuses": {}}}
        self._api.call("PATCH", f"{JOBS}/namespaces/{self._namespace}/pytorchjobs/{name}/status", body, MERGE)

    # -- threads ------------------------------------------------------------------------------------------------------

    def _hand(self, work: Any, *arguments: Any) -> None:
        self._hands.submit(self._guarded, work, *arguments)

    def _guarded(self, work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            self._failures.put(error)


def _mark_of(job: Body) -> tuple[str, str]:
    labels = job["metadata"]["labels"]
    return labels[f"{GROUP}/run"], labels[f"{GROUP}/step"]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def manifest(name: str) -> Body:
    """A run of eight steps: prepare, finetune, and prune, distill, export of two students."""
    cuts = {"width": {"hiddenSize": 64}, "depth": {"dropLayers": [3]}}
    return {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "CompressionRun",
        "metadata": {"name": name},
        "spec": {
            "teacher": {"model": "hf://owner/teacher"},
            "dataset": {"source": "hf://owner/text", "sequenceLength": 64},
            "finetune": {"steps": 200},
            "students": [{"name": student, "prune": cuts[student]} for student in STUDENTS],
            "distill": {"steps": 100},
            "maxParallelJobs": len(STUDENTS),
            "storage": {"persistentVolumeClaim": {"claimName": "store"}},
        },
    }


def result_of(phase: str, fingerprint: str) -> Body:
    """What a job of this phase reports."""
    architecture = {
        "family": "Llama",
        "layers": 4,
        "hiddenSize": 128,
        "ffnHiddenSize": 384,
        "attentionHeads": 8,
        "queryGroups": 4,
        "headDim": 16,
        "vocabularySize": 512,
    }
    source = {"source": "hf://owner/x", "revision": "0" * 40, "digest": "0" * 32}
    results: dict[str, Body] = {
        "prepare": {
            "key": fingerprint,
            "teacher": architecture,
            "teacherParameters": 1_000_000,
            "resolvedTeacher": source,
            "resolvedDataset": source,
            "documents": 10,
            "trainTokens": 100_000_000,
            "validationTokens": 100,
        },
        "finetune": {"teacherLoss": 4.0, "correctedTeacherLoss": 3.8, "tokensPerSecond": 1000.0},
        "prune": {"student": architecture, "parameters": 600_000, "compressionRatio": 0.6, "keptLayers": [1, 2, 4]},
        "distill": {"teacherLoss": 3.8, "prunedLoss": 4.8, "distilledLoss": 3.9, "tokensPerSecond": 1234.5},
        "export": {"parameters": 600_000, "relativeError": 1e-6, "bytes": 2_400_000, "sample": "It returns it."},
    }
    return results[phase]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    load = Load(Api(given.kubeconfig), given.namespace, given.seed)
    load.start(given.runs)
    answer: Any = "ready"
    while True:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            return
        command = json.loads(line)
        answer = load.burst() if command["do"] == "burst" else load.pace(command["completions"], command["rate"])


if __name__ == "__main__":
    main()
