"""What a real kubelet gives of a log, as the operator asks for it."""

import asyncio
import json
from datetime import UTC, datetime

import pytest
from api import Api, Body
from operators import Namespace
from tests.cluster.up import Cluster
from tests.support.waiting import until, until_async

from compression_operator.backends.log_watcher import LogWatcher
from compression_operator.kube.client import Kube
from compression_operator.kube.denied_permissions import Denials
from compression_operator.kube.login import connect

EVENT = {"event": "progress", "time": "2026-11-21T12:00:00+00:00", "step": 7, "totalSteps": 9}


def test_the_newest_event_is_heard_however_long_the_lines_are(
    api: Api, cluster: Cluster, namespace: Namespace, pods: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 1.3 KB a line on it was lost, and a job that talked much was stopped for its silence."""
    say = f"i=0; while [ $i -lt 200 ]; do printf '%02000d\\n' $i; i=$((i+1)); done; echo '{json.dumps(EVENT)}'"
    container: Body = {"name": "pytorch", "image": "localhost/busybox:1", "command": ["sh", "-c", say]}
    container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    spec: Body = {"restartPolicy": "Never", "containers": [container]}
    spec["securityContext"] = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    account = f"/api/v1/namespaces/{namespace.name}/serviceaccounts/default"
    until(lambda: api.get(account), "the controller manager to make the account without which pods are refused")
    path = f"/api/v1/namespaces/{namespace.name}/pods"
    api.create(path, {"metadata": {"name": "talks"}, "spec": spec})
    until(lambda: api.call("GET", f"{path}/talks")["status"]["phase"] == "Succeeded", "the pod to have spoken")
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))

    async def scenario() -> int:
        kube = Kube(connect)
        watcher = LogWatcher(kube, lambda _: None, denials=Denials(lambda _: None), period_seconds=1, first_seconds=0)
        try:
            watcher.follow(f"{namespace.name}/run", {"uid": "talks"})
            # A kubelet that has much to do may give no answer in time: the next look is as good as the first.
            progress = await until_async(
                lambda: watcher.newest("uid", datetime.now(UTC)).progress, "the log to be read"
            )
            return progress.step
        finally:
            await watcher.close()
            await kube.close()

    assert asyncio.run(scenario()) == 7
