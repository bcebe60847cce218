"""The operator in its pod, installed by helm: its death is nobody's business but its own."""

import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator

import pytest
import standin_image
import yaml
from api import Api
from nodes import cut_power
from operators import FINAL, Namespace
from tests.cluster.paths import REPOSITORY, State
from tests.cluster.up import Cluster
from tests.packaging.image import OPERATOR
from tests.support.waiting import until

RELEASE = "compression-operator"


@pytest.fixture
def installed(namespace: Namespace, cluster: Cluster, pods: str, installable: None) -> Iterator[Namespace]:
    """Two replicas of the operator in the namespace of the runs, and for it alone."""

    def image(name: str) -> dict[str, str]:
        repository, tag = name.rsplit(":", 1)
        return {"repository": repository, "tag": tag}

    values = {
        "image": image(OPERATOR),
        "pipelineImage": image(standin_image.NAME),
        "watchNamespaces": [namespace.name],
        "crds": {"install": False},
        "replicas": 2,
    }

    def helm(*arguments: str) -> None:
        command = [str(cluster.bin / "helm") if cluster.bin else "helm", *arguments]
        command += [f"--kubeconfig={cluster.kubeconfig}", f"--namespace={namespace.name}"]
        done = subprocess.run(command, input=yaml.safe_dump(values), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    chart = str(REPOSITORY / "charts" / "compression-operator")
    helm("install", RELEASE, chart, "--wait", "--timeout=600s", "--values=-")
    yield namespace
    helm("uninstall", RELEASE)


def leader(api: Api, namespace: str) -> str:
    """Name of the pod that leads; empty where none does."""
    lease = api.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{RELEASE}")
    return (lease["spec"].get("holderIdentity") or "") if lease else ""


def test_its_pod_killed_at_three_random_moments(installed: Namespace, api: Api, state: State) -> None:
    """SIGKILL to whoever leads, three times; the run ends as if nothing had happened, each step's job made once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown where the test fails
    rng = random.Random(seed)
    over = "the-last-kill-is-over"
    slow = {"steps": 20, "seconds": 0.6}
    installed.submit(behaviour={"*": slow, "export-width": {**slow, "until": f"/compression/{over}"}})
    killed: list[str] = []

    def kill_another() -> str:
        """Its name; empty where none leads just now, or its container has ended by itself and comes again."""
        name = leader(api, installed.name)
        count = cut_power(state, name) if name not in ("", *killed) else 0
        assert count <= 1, f"{count} processes in the operator's container"
        return name if count else ""

    for _ in range(3):
        until(lambda: leader(api, installed.name) not in ("", *killed), "another leader")
        time.sleep(rng.uniform(0.0, 4.0))
        assert installed.status().get("phase") not in FINAL, "the run was over before the last kill"
        killed.append(until(kill_another, "a leader to be there"))
        # Its Deployment makes another one; this one would wait ever longer for its next start.
        api.delete(f"/api/v1/namespaces/{installed.name}/pods/{killed[-1]}", gracePeriodSeconds=0)
    (installed.store / over).touch()
    status = installed.wait_phase(*FINAL)
    assert status["phase"] == "Succeeded"
    assert len(set(killed)) == len(killed)
    assert Counter(installed.starts()) == Counter((step["name"], 1) for step in status["steps"])
    assert {job["metadata"]["name"] for job in installed.jobs()} == {step["jobName"] for step in status["steps"]}
