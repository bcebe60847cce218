"""How quickly the operator reacts, and what that costs, before a real API server and etcd.

    python benchmarks/reaction.py [--runs N] [--completions M] [--rate 10] [--json]

N CompressionRuns of eight steps are kept active (one that ends is replaced). M jobs are completed at a fixed rate, each
one of those that run; then the operator is killed (SIGKILL) and started again; then the job of every run is completed
at once. The operator is a process of its own with its service account and rules; so is the load (reaction_load.py),
which plays kubelet and training operator. etcd and the API server are this benchmark's own, on loopback, and are
gone at the end.

p50_ms, p99_ms: from *job done* (the API server has answered the patch by which the job's pod ends) to *next job
  created* (the watch brings its ADDED event); every job that a completion lets start counts.
writes_per_step: requests of the operator that write (create, update, patch, delete: Events and leases too) for each
  completed job, by its own metrics; `writes` tells them apart, by the API server's.
rss_mib: the peak of the operator's resident memory over everything (VmHWM), the restarted one's too.
restart_s: from the start of the process after the kill until every run had its first pass and none waits. It has the
  name of the killed one, as a restarted container has, and so takes its lease over without waiting.
cpu_ms_per_step: processor time of the operator for each completed job, which depends least on what else runs.
burst_p50_ms, burst_p99_ms: as the first two, with all completed at once.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, cast

import urllib3
import yaml
from reaction_load import JOBS, RUNS, Api, Body

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.cluster.down import down  # noqa: E402 - found by the path set above
from tests.cluster.paths import State, cache_root  # noqa: E402 - likewise
from tests.cluster.up import up_bare  # noqa: E402 - likewise

from compression_operator.kube import PERMISSIONS  # noqa: E402 - likewise

NAMESPACE = "reaction"
ACCOUNT = "operator"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
WRITES = ("create", "update", "patch", "delete")
STARTING_SECONDS = 60.0
SETTLING_SECONDS = 1.0
"""Time for the last statuses and Events of a phase to be written."""

OPERATORS = {
    "jobs": ("pytorchjobs", "", ("POST", "DELETE")),
    "statuses": ("compressionruns", "status", ("PUT", "PATCH")),
    "events": ("events", "", ("POST", "PUT", "PATCH")),
}
"""What of the API server's requests only the operator can have made: resource, subresource, verbs."""


@dataclass
class Operator:
    """The operator's process; `restart` kills it and starts it anew under the same name."""

    kubeconfig: Path
    log: Path
    bytecode: Path
    profile: Path | None = None
    port: int = 0
    peak_mib: float = 0.0
    _process: "subprocess.Popen[bytes] | None" = field(default=None)

    def start(self) -> None:
        self.port = _free_port()
        command = [sys.executable, "-m", "compression_operator", "--image", "localhost/pipeline:1"]
        if self.profile is not None:
            command[1:1] = ["-m", "cProfile", "-o", str(self.profile)]
        command += ["--namespace", NAMESPACE, "--lease-namespace", NAMESPACE, "--identity", "operator-0"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        # As in the image, Python's compiled files are there; without them a start takes ten seconds, and 25 MiB more.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(self.bytecode)
        if self._process is None:
            subprocess.run([sys.executable, "-c", "import compression_operator.__main__"], env=environment, check=True)
        with self.log.open("a") as log:
            self._process = subprocess.Popen(  # noqa: S603 (this very project)
                command, stdout=log, stderr=log, env=environment | {"KUBECONFIG": str(self.kubeconfig)}
            )

    def end(self, number: int) -> None:
        """Take note of its peak of memory, and end it."""
        if self._process is None or self._process.poll() is not None:
            return
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        kibibytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        self.peak_mib = max(self.peak_mib, kibibytes / 1024)
        self._process.send_signal(number)
        self._process.wait(30)

    def processor_seconds(self) -> float:
        """User and system time that the process has had so far."""
        return self.metrics().get("process_cpu_seconds_total", 0.0)

    def metrics(self) -> dict[str, float]:
        """Its metrics by name and labels; empty while it does not answer."""
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the operator ended:\n{self.log.read_text()[-3000:]}")
        try:
            answer = urllib3.request("GET", f"http://127.0.0.1:{self.port}/metrics", retries=False, timeout=10)
        except urllib3.exceptions.HTTPError:
            return {}
        return parsed(answer.data.decode())

    def wait_passes(self, runs: int) -> None:
        """Until so many passes went through and none waits. Raises TimeoutError."""
        end = time.monotonic() + STARTING_SECONDS
        while time.monotonic() < end:
            found = self.metrics()
            passes = found.get("compression_reconcile_duration_seconds_count", 0)
            leads = found.get("compression_leader", 0)
            if leads and passes >= runs and not found.get("compression_queue_depth"):
                return
            time.sleep(0.02)
        raise TimeoutError(f"no steady state after {STARTING_SECONDS:g} s:\n{self.log.read_text()[-3000:]}")

    def writes(self) -> float:
        """Requests that write, so far."""
        found = self.metrics().items()
        return sum(
            value for name, value in found if re.search(rf'api_requests_total{{.*verb="({"|".join(WRITES)})"', name)
        )


class Loader:
    """The load's process."""

    def __init__(self, kubeconfig: Path, runs: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("reaction_load.py"))]
        command += ["--kubeconfig", str(kubeconfig), "--namespace", NAMESPACE, "--runs", str(runs)]
        self._process = subprocess.Popen(  # noqa: S603 (the script beside this one)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> Any:
        line = cast(IO[str], self._process.stdout).readline()
        if not line:
            raise RuntimeError("the load ended early; what it said is above")
        return json.loads(line)

    def ask(self, **command: Any) -> Any:
        pipe = cast(IO[str], self._process.stdin)
        pipe.write(json.dumps(command) + "\n")
        pipe.flush()
        return self.answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def parsed(text: str) -> dict[str, float]:
    """Prometheus' text format as values by name and labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * len(ordered) * 1000) // 1000) - 1)]


def measure(runs: int, completions: int, rate: float, folder: Path, profile: Path | None) -> Body:
    """Everything about `runs` active runs."""
    with _api_server(folder) as (kubeconfig, server_version):
        api = Api(kubeconfig)
        account = _operators_kubeconfig(api, kubeconfig, folder)
        operator = Operator(account, folder / "operator.log", cache_root() / "bytecode", profile)
        operator.start()
        load = Loader(kubeconfig, runs)
        try:
            load.answer()
            _settle(operator, runs)
            before, kinds_before = operator.writes(), _by_kind(api)
            processor = operator.processor_seconds()
            paced = load.ask(do="pace", completions=completions, rate=rate)
            processor = operator.processor_seconds() - processor
            _settle(operator, runs)
            writes, kinds = operator.writes() - before, _by_kind(api)
            told = {kind: kinds[kind] - kinds_before[kind] for kind in OPERATORS}
            told["leases"] = writes - sum(told.values())
            if profile is not None:
                operator.end(signal.SIGTERM)
                operator.profile = None
            operator.end(signal.SIGKILL)
            began = time.monotonic()
            operator.start()
            operator.wait_passes(runs)
            restart = time.monotonic() - began
            burst = load.ask(do="burst")
            operator.end(signal.SIGTERM)
        finally:
            load.close()
            operator.end(signal.SIGKILL)
    return {
        "runs": runs,
        "p50_ms": round(1000 * percentile(paced, 0.5), 1),
        "p99_ms": round(1000 * percentile(paced, 0.99), 1),
        "writes_per_step": round(writes / completions, 2),
        "rss_mib": round(operator.peak_mib, 1),
        "restart_s": round(restart, 2),
        "cpu_ms_per_step": round(1000 * processor / completions, 1),
        "burst_p50_ms": round(1000 * percentile(burst, 0.5), 1),
        "burst_p99_ms": round(1000 * percentile(burst, 0.99), 1),
        "writes": {kind: round(number / completions, 2) for kind, number in told.items()},
        "completions": completions,
        "rate": rate,
        "samples": len(paced),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {
            "kube-apiserver": server_version,
            **{name: version(name) for name in ("kopf", "aiohttp", "pydantic")},
        },
    }


def _settle(operator: Operator, runs: int) -> None:
    operator.wait_passes(runs)
    time.sleep(SETTLING_SECONDS)


def _by_kind(api: Api) -> dict[str, float]:
    """Requests that only the operator can have made, by the API server's own count."""
    found = parsed(api.call("GET", "/metrics"))
    counts = dict.fromkeys(OPERATORS, 0.0)
    for name, value in found.items():
        if not name.startswith("apiserver_request_total{"):
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
        for kind, (resource, subresource, verbs) in OPERATORS.items():
            same = labels["resource"] == resource and labels["subresource"] == subresource
            if same and labels["verb"] in verbs:
                counts[kind] += value
    return counts


@contextlib.contextmanager
def _api_server(folder: Path) -> Iterator[tuple[Path, str]]:
    """An API server with both CRDs and the namespace; its kubeconfig and version."""
    state = State.at(folder / "cluster")
    cluster = up_bare(state, lambda sentence: None)
    try:
        api = Api(cluster.kubeconfig)
        crd = yaml.safe_load((ROOT / "crds" / "compressionruns.modelcompression.io.yaml").read_text())
        api.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        api.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        # What the controller manager would make; pods are refused without.
        api.call("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": {"name": "default"}})
        _wait_served(api)
        yield cluster.kubeconfig, api.call("GET", "/version")["gitVersion"]
    finally:
        down(state, lambda sentence: None)


def _wait_served(api: Api) -> None:
    end = time.monotonic() + STARTING_SECONDS
    while True:
        try:
            for prefix, plural in ((RUNS, "compressionruns"), (JOBS, "pytorchjobs")):
                api.call("GET", f"{prefix}/namespaces/{NAMESPACE}/{plural}")
            return
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _operators_kubeconfig(api: Api, admins: Path, folder: Path) -> Path:
    """A kubeconfig of a service account with the operator's rules and no more."""
    core = f"/api/v1/namespaces/{NAMESPACE}"
    api.call("POST", f"{core}/serviceaccounts", {"metadata": {"name": ACCOUNT}})
    rules = [{"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in PERMISSIONS]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    meta = {"metadata": {"name": ACCOUNT}}
    api.call("POST", f"{RBAC}/namespaces/{NAMESPACE}/roles", meta | {"rules": rules})
    api.call("POST", f"{RBAC}/namespaces/{NAMESPACE}/rolebindings", meta | {"roleRef": role, "subjects": [subject]})
    asked = {"spec": {"expirationSeconds": 7200}}
    token = api.call("POST", f"{core}/serviceaccounts/{ACCOUNT}/token", asked)["status"]["token"]
    config = json.loads(admins.read_text())
    config["users"][0]["user"] = {"token": token}
    file = folder / "operator.kubeconfig"
    file.write_text(json.dumps(config))
    return file


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="active runs")
    parser.add_argument("--completions", type=int, default=300, help="jobs that are completed one by one")
    parser.add_argument("--rate", type=float, default=10.0, help="completions a second")
    parser.add_argument("--profile", type=Path, help="write the operator's cProfile to this file (and be slower)")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reaction-") as folder:
        record = measure(given.runs, given.completions, given.rate, Path(folder), given.profile)
    if given.json:
        sys.stdout.write(json.dumps(record) + "\n")
        return
    for name, value in record.items():
        sys.stdout.write(f"{name:16} {value}\n")


if __name__ == "__main__":
    main()
