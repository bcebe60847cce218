"""Nodes that are lost: the kubelet is stopped, and what it ran is killed, as where a machine loses its power.

Only for a cluster of the test's own: nothing else can run on its node meanwhile.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import urllib3
from api import Api, Refused
from tests.cluster.paths import State
from tests.cluster.processes import Identity
from tests.support.waiting import until

GIVEN_UP_SOON = {
    "tolerations": [
        {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
        for taint in ("unreachable", "not-ready")
    ]
}
"""jobTemplate of runs whose pods a silent node keeps for half a minute, not for the five minutes of the default: long
enough to see what is said meanwhile.
"""


def _processes(state: State, mark: str, file: str) -> list[Identity]:
    """This cluster's processes that have `mark` in a file of /proc."""
    found: list[Identity] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = state.cgroup in (folder / "cgroup").read_text() or str(state.root) in (
                folder / "cmdline"
            ).read_bytes().decode(errors="replace")
            if ours and mark.encode() in (folder / file).read_bytes():
                identity = Identity.of(int(folder.name))
                found += [identity] if identity else []
        except OSError:
            continue  # it has ended
    return found


@contextmanager
def silent_node(state: State) -> Iterator[None]:
    """The node's kubelet does nothing and says nothing; what it has started runs on."""

    def alone() -> list[Identity]:
        found = _processes(state, f"--config={state.root}/kubelet.json", "cmdline")
        return found if len(found) == 1 else []

    # A child that it has just forked bears its command line until it runs another program.
    (kubelet,) = until(alone, "the kubelet to be the only one of its command line")
    kubelet.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        kubelet.signal(signal.SIGCONT)


def cut_power(state: State, pod: str) -> int:
    """Kill what runs in a pod; returns how many processes that were."""
    running = _processes(state, f"HOSTNAME={pod}\0", "environ")
    for process in running:
        process.signal(signal.SIGKILL)
    return len(running)


@contextmanager
def bystander(api: Api) -> Iterator[None]:
    """Another node that is there and ready, and takes no pods: where every node is silent, Kubernetes gives up none."""
    name, path = "bystander", "/api/v1/nodes"
    lease = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"
    taint = {"key": "tests/bystander", "effect": "NoSchedule"}
    api.create(path, {"metadata": {"name": name}, "spec": {"taints": [taint]}})
    spec = {"holderIdentity": name, "leaseDurationSeconds": 40}
    api.create(lease.rpartition("/")[0], {"metadata": {"name": name}, "spec": spec})
    stopping = threading.Event()

    def beat() -> None:
        while True:
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            ready = {
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "",
                "lastHeartbeatTime": now[:19] + "Z",
            }
            try:
                api.call(
                    "PATCH",
                    f"{path}/{name}/status",
                    {"status": {"conditions": [ready]}},
                    kind="application/strategic-merge-patch+json",
                )
                api.merge(lease, {"spec": {"renewTime": now}})
            except (Refused, urllib3.exceptions.HTTPError):
                pass  # once more in a moment
            if stopping.wait(5):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(30)
        api.delete(f"{path}/{name}")
        api.delete(lease)
