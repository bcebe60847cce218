"""How quickly the operator reacts, and what that costs, before a real API server and etcd.

    python benchmarks/reaction.py [--runs N ...] [--rounds 1] [--completions M] [--rate 10] [--json]

N CompressionRuns of eight steps are kept active (one that ends is replaced). M jobs are completed at a fixed rate, each
one of those that run; then (in the first round alone) the operator is killed (SIGKILL) and started again; then the job
of every run is completed at once. The operator is a process of its own with its service account and rules; so is the
load (reaction_load.py), which plays kubelet and training operator. etcd and the API server are this benchmark's own, on
loopback, and are gone at the end, also where it is interrupted (SIGINT, SIGTERM). Each measurement has a namespace and
an operator of its own.

p50_ms, p99_ms: from *job done* (the API server has answered the patch by which the job's pod ends) to *next job
  created* (the watch brings its ADDED event); every job that a completion lets start counts.
writes_per_step: requests of the operator that write (create, update, patch, delete: Events and leases too) for each
  completed job, by its own metrics; `writes` tells them apart, by the API server's.
rss_mib: the peak of the operator's resident memory over everything (VmHWM), the restarted one's too.
restart_s: from the start of the process after the kill until every run had its first pass and none waits. It has the
  name of the killed one, as a restarted container has, and so takes its lease over without waiting.
cpu_ms_per_step: processor time of the operator for each completed job, which depends least on what else runs;
  `cpu_ms` has that of the API server and of the load beside it (etcd and the kernel are in none).
idle_ratio: the share of the machine's processor time that nobody used while jobs were completed one by one; where it
  is near 0 the times tell of the machine and not of the operator.
burst_p50_ms, burst_p99_ms: as the first two, with all completed at once.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml
from reaction_load import JOBS, RUNS, Api, Body
from reaction_processes import STARTING_SECONDS, Loader, Operator, parsed

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.cluster.down import down  # noqa: E402 - found by the path set above
from tests.cluster.paths import State, cache_root  # noqa: E402 - likewise
from tests.cluster.up import up_bare  # noqa: E402 - likewise

from compression_operator.backends.kinds import PERMISSIONS  # noqa: E402 - likewise

ACCOUNT = "operator"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
SETTLING_SECONDS = 1.0
"""Time for the last statuses and Events of a phase to be written."""

COLUMNS = (
    *("p50_ms", "p99_ms", "writes_per_step", "rss_mib", "cpu_ms_per_step"),
    *("restart_s", "burst_p50_ms", "burst_p99_ms", "idle_ratio", "load_average"),
)

OPERATORS = {
    "jobs": ("pytorchjobs", "", ("POST", "DELETE")),
    "statuses": ("compressionruns", "status", ("PUT", "PATCH")),
    "events": ("events", "", ("POST", "PUT", "PATCH")),
}
"""What of the API server's requests only the operator can have made: resource, subresource, verbs."""


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * len(ordered) * 1000) // 1000) - 1)]


@dataclass
class Server:
    """The API server, and what is told of the operator that is measured before it."""

    kubeconfig: Path
    versions: dict[str, str]
    folder: Path
    api: Api

    def measure(self, runs: int, completions: int, rate: float, profile: Path | None, *, briefly: bool) -> Body:
        """Everything about `runs` active runs; `briefly`: without the restart and the burst."""
        namespace = f"reaction-{runs}-{time.monotonic_ns()}"
        account = _make_namespace(self.api, namespace, self.kubeconfig, self.folder)
        log = self.folder / f"{namespace}.log"
        operator = Operator(namespace, account, log, cache_root() / "bytecode", profile)
        load: Loader | None = None
        try:
            operator.start()
            load = Loader(self.kubeconfig, namespace, runs)
            load.answer()
            _settle(operator, runs)
            writes, kinds, cpu, idle = operator.writes(), self._by_kind(), self._cpu(operator, load), _machine()
            paced = load.ask(do="pace", completions=completions, rate=rate)
            cpu = {name: seconds - cpu[name] for name, seconds in self._cpu(operator, load).items()}
            idle = [after - before for after, before in zip(_machine(), idle, strict=True)]
            _settle(operator, runs)
            writes = operator.writes() - writes
            told = {kind: number - kinds[kind] for kind, number in self._by_kind().items()}
            told["leases"] = writes - sum(told.values())
            if profile is not None:
                operator.end(signal.SIGTERM)
                if not profile.exists():  # a watch that stays in its thread ends the process at once
                    raise RuntimeError(f"the operator ended before it wrote {profile}: measure again")
                operator.profile = None
            rest = {} if briefly else self._restart_and_burst(operator, load, runs)
            operator.end(signal.SIGTERM)
        finally:
            if load is not None:
                load.close()
            operator.end(signal.SIGKILL)
        return {
            "runs": runs,
            "p50_ms": round(1000 * percentile(paced, 0.5), 1),
            "p99_ms": round(1000 * percentile(paced, 0.99), 1),
            "writes_per_step": round(writes / completions, 2),
            "rss_mib": round(operator.peak_mib, 1),
            "cpu_ms_per_step": round(1000 * cpu["operator"] / completions, 1),
            **rest,
            "cpu_ms": {name: round(1000 * seconds / completions, 1) for name, seconds in cpu.items()},
            "writes": {kind: round(number / completions, 2) for kind, number in told.items()},
            "completions": completions,
            "rate": rate,
            "samples": len(paced),
            "idle_ratio": round(idle[0] / idle[1], 2),
            "load_average": round(os.getloadavg()[0], 2),
            "versions": self.versions,
        }

    def _restart_and_burst(self, operator: Operator, load: Loader, runs: int) -> Body:
        operator.end(signal.SIGKILL)
        began = time.monotonic()
        operator.start()
        operator.wait_passes(runs)
        restart = time.monotonic() - began
        burst = load.ask(do="burst")
        return {
            "restart_s": round(restart, 2),
            "burst_p50_ms": round(1000 * percentile(burst, 0.5), 1),
            "burst_p99_ms": round(1000 * percentile(burst, 0.99), 1),
        }

    def _cpu(self, operator: Operator, load: Loader) -> dict[str, float]:
        """Processor time that each has had so far."""
        server = parsed(self.api.call("GET", "/metrics"))["process_cpu_seconds_total"]
        return {
            "operator": operator.processor_seconds(),
            "kube-apiserver": server,
            "load": load.processor_seconds(),
        }

    def _by_kind(self) -> dict[str, float]:
        """Requests that only the operator can have made, by the API server's own count."""
        counts = dict.fromkeys(OPERATORS, 0.0)
        for name, value in parsed(self.api.call("GET", "/metrics")).items():
            if not name.startswith("apiserver_request_total{"):
                continue
            labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
            for kind, (resource, subresource, verbs) in OPERATORS.items():
                same = labels["resource"] == resource and labels["subresource"] == subresource
                if same and labels["verb"] in verbs:
                    counts[kind] += value
        return counts


def _machine() -> list[int]:
    """The machine's idle processor time so far, and all of it, in clock ticks."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return [ticks[3] + ticks[4], sum(ticks)]


def _settle(operator: Operator, runs: int) -> None:
    operator.wait_passes(runs)
    time.sleep(SETTLING_SECONDS)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    """An API server with both CRDs."""
    state = State.at(folder / "cluster")
    cluster = up_bare(state, lambda sentence: None)
    try:
        api = Api(cluster.kubeconfig)
        crd = yaml.safe_load((ROOT / "crds" / "compressionruns.modelcompression.io.yaml").read_text())
        api.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        _wait_served(api)
        versions = {
            "kube-apiserver": api.call("GET", "/version")["gitVersion"],
            "python": platform.python_version(),
            **{name: version(name) for name in ("kopf", "aiohttp", "pydantic")},
        }
        yield Server(cluster.kubeconfig, versions, folder, api)
    finally:
        down(state, lambda sentence: None)


def _wait_served(api: Api) -> None:
    end = time.monotonic() + STARTING_SECONDS
    while True:
        try:
            for prefix, plural in ((RUNS, "compressionruns"), (JOBS, "pytorchjobs")):
                api.call("GET", f"{prefix}/{plural}")
            return
        except RuntimeError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _make_namespace(api: Api, namespace: str, admins: Path, folder: Path) -> Path:
    """A namespace; the kubeconfig of a service account there, with the operator's rules and no more."""
    core = f"/api/v1/namespaces/{namespace}"
    api.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    # The default one, too, which the controller manager would make; pods are refused without.
    for name in ("default", ACCOUNT):
        api.call("POST", f"{core}/serviceaccounts", {"metadata": {"name": name}})
    rules = [{"apiGroups": [r.group], "resources": [r.resource], "verbs": list(r.verbs)} for r in PERMISSIONS]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace}
    meta = {"metadata": {"name": ACCOUNT}}
    api.call("POST", f"{RBAC}/namespaces/{namespace}/roles", meta | {"rules": rules})
    api.call("POST", f"{RBAC}/namespaces/{namespace}/rolebindings", meta | {"roleRef": role, "subjects": [subject]})
    asked = {"spec": {"expirationSeconds": 7200}}
    token = api.call("POST", f"{core}/serviceaccounts/{ACCOUNT}/token", asked)["status"]["token"]
    config = json.loads(admins.read_text())
    config["users"][0]["user"] = {"token": token}
    file = folder / f"{namespace}.kubeconfig"
    file.write_text(json.dumps(config))
    return file


def table(records: list[Body]) -> str:
    """A row for each number of runs: the median of the rounds, and in brackets the least and the most."""
    lines = ["| N | " + " | ".join(COLUMNS) + " |", "|--:|" + "--:|" * len(COLUMNS)]
    for runs in dict.fromkeys(record["runs"] for record in records):
        cells: list[str] = []
        for column in COLUMNS:
            found = [record[column] for record in records if record["runs"] == runs and column in record]
            spread = f" ({min(found):g}-{max(found):g})" if len(found) > 1 else ""
            cells.append(f"{statistics.median(found):g}{spread}")
        lines.append(f"| {runs} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # told twice, it still cleans up
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100], help="active runs; several: one after the other")
    parser.add_argument("--rounds", type=int, default=1, help="times that all of it is measured")
    parser.add_argument("--completions", type=int, default=300, help="jobs that are completed one by one")
    parser.add_argument("--rate", type=float, default=10.0, help="completions a second")
    parser.add_argument("--profile", type=Path, help="write the operator's cProfile to this file (and be slower)")
    parser.add_argument("--json", action="store_true", help="print a JSON record for each measurement")
    given = parser.parse_args()
    # As Ctrl-C does: what was started is ended on the way out.
    signal.signal(signal.SIGTERM, _end)
    records: list[Body] = []
    with tempfile.TemporaryDirectory(prefix="reaction-") as folder, served(Path(folder)) as server:
        for number in range(given.rounds):
            for runs in given.runs:
                record = server.measure(runs, given.completions, given.rate, given.profile, briefly=number > 0)
                records.append(record)
                if given.json or len(given.runs) * given.rounds > 1:
                    print(json.dumps(record), file=sys.stdout if given.json else sys.stderr, flush=True)
    if given.json:
        return
    if len(records) > 1:
        sys.stdout.write(table(records))
        return
    for name, value in records[0].items():
        sys.stdout.write(f"{name:16} {value}\n")


if __name__ == "__main__":
    main()
