"""The chart on a real cluster: `helm install` from the built image, upgrade, uninstall, and what they leave alone."""

import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from tests.packaging.helm import CHART, EVERYTHING, Body, kinds, render
from tests.packaging.image import OPERATOR
from tests.packaging.installed import Cluster
from tests.packaging.prometheus import program
from tests.support.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.own_cluster]

NAMESPACE, RELEASE = "compression-system", "compression-operator"
REPOSITORY_NAME, TAG = OPERATOR.rsplit(":", 1)
RUNTIME = {"type": "RuntimeDefault"}
VALUES = {
    "image": {"repository": REPOSITORY_NAME, "tag": TAG, "pullPolicy": "Never"},
    "pipelineImage": {"repository": "localhost/pipeline"},
    # As a cluster may choose it: a user that is in no passwd file.
    "podSecurityContext": {"runAsNonRoot": True, "runAsUser": 1000650000, "runAsGroup": 0, "seccompProfile": RUNTIME},
}


def run_manifest(name: str, namespace: str) -> str:
    """A run whose jobs never start, for their image is nowhere."""
    spec: Body = {
        "teacher": {"model": "hf://owner/teacher"},
        "dataset": {"source": "hf://owner/text", "sequenceLength": 64},
        "students": [{"name": "width", "prune": {"hiddenSize": 64}}],
        "distill": {"steps": 10, "globalBatchSize": 8, "warmupSteps": 1},
        "storage": {"persistentVolumeClaim": {"claimName": "store"}},
        "jobTemplate": {"image": "localhost/nowhere:1", "imagePullPolicy": "Never"},
    }
    meta = {"name": name, "namespace": namespace}
    return json.dumps(
        {"apiVersion": "modelcompression.io/v1alpha1", "kind": "CompressionRun", "metadata": meta, "spec": spec}
    )


def install(
    cluster: Cluster, *arguments: str, release: str = RELEASE, namespace: str = NAMESPACE, **values: Any
) -> str:
    """helm upgrade --install, as a user would; returns the notes."""
    command = ["upgrade", "--install", release, str(CHART), "--namespace", namespace, "--wait", "--timeout=600s"]
    try:
        notes = cluster.helm(*command, "--values=-", *arguments, given=yaml.safe_dump(VALUES | values))
        # helm waits for the pods; that the Service leads to them is another controller's work.
        slices = ["endpointslices", f"--namespace={namespace}", f"--selector=app.kubernetes.io/instance={release}"]
        until(lambda: any(map(ready, cluster.items(*slices))), "the Service to lead to a pod")
        return notes
    except (AssertionError, TimeoutError) as error:
        logs = cluster.kubectl(
            "logs", f"--namespace={namespace}", "--selector=app.kubernetes.io/component=operator", "--tail=30"
        )
        raise AssertionError(f"{error}\n{logs}") from error


def ready(endpoints: Body) -> bool:
    """Whether an EndpointSlice has somebody who answers."""
    return any(endpoint["conditions"].get("ready") for endpoint in endpoints["endpoints"] or ())


def namespace(cluster: Cluster, name: str) -> None:
    """A namespace that takes restricted pods alone."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    cluster.kubectl("apply", "--filename=-", given=json.dumps(body))


@pytest.fixture(scope="module")
def notes(cluster: Cluster) -> Iterator[str]:
    """The operator installed, two replicas of it; what helm said."""
    namespace(cluster, NAMESPACE)
    namespace(cluster, "models")
    try:
        yield install(cluster, replicas=2)
    finally:
        cluster.kubectl("delete", "compressionruns", "--all", "--namespace=models", check=False)
        cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", check=False)
        cluster.kubectl("delete", "namespace", NAMESPACE, "models")
        cluster.kubectl("delete", "crd", "compressionruns.modelcompression.io", check=False)


@pytest.fixture
def job(cluster: Cluster, notes: str) -> Body:
    """The first job of a run."""
    cluster.kubectl("apply", "--filename=-", given=run_manifest("llama", "models"))
    return until(lambda: cluster.items("pytorchjobs", "--namespace=models"), "the run's first job")[0]


def served(cluster: Cluster, path: str) -> str:
    """What the operator's Service answers, by way of the API server. It goes by the Service's Endpoints, which another
    controller keeps than its EndpointSlices: a pod may still be missing there, or still be named that has gone.
    """
    address = f"/api/v1/namespaces/{NAMESPACE}/services/{RELEASE}:http/proxy{path}"

    said = ""

    def answer() -> str | None:
        nonlocal said
        try:
            return cluster.kubectl("get", "--raw", address)
        except AssertionError as error:
            said = str(error)
            return None

    try:
        return until(answer, f"the Service to answer {path}")
    except TimeoutError as error:
        raise AssertionError(f"{error}: {said}") from error


def leader(cluster: Cluster) -> str:
    """Name of the pod that leads; empty where none does."""
    holder = ["--ignore-not-found", "--output=jsonpath={.spec.holderIdentity}"]
    return cluster.kubectl("get", "lease", RELEASE, f"--namespace={NAMESPACE}", *holder)


def test_it_is_ready_under_the_restricted_standard(cluster: Cluster, notes: str) -> None:
    pods = cluster.items("pods", f"--namespace={NAMESPACE}")
    assert len(pods) == 2
    for pod in pods:
        assert {c["type"]: c["status"] for c in pod["status"]["conditions"]}["Ready"] == "True"
        assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    # Ready are they both before one leads.
    assert until(lambda: leader(cluster), "a leader") in {pod["metadata"]["name"] for pod in pods}
    assert "watches the whole cluster" in notes
    assert "no PyTorchJobs" not in notes


def test_endpoints(cluster: Cluster, notes: str) -> None:
    assert served(cluster, "/healthz") == "ok\n"
    assert served(cluster, "/readyz") == "ok\n"


def test_promtool_finds_nothing_wrong_with_the_metrics(cluster: Cluster, job: Body) -> None:
    metrics = served(cluster, "/metrics")
    assert "compression_api_requests_total" in metrics
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=metrics, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Callable[[str], list[Body]]]:
    """A Prometheus that scrapes `target` every second; ask it."""
    scrape = {"job_name": "operator", "honor_labels": True, "static_configs": [{"targets": [target]}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    arguments = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program("prometheus"), *arguments, "--web.listen-address=127.0.0.1:0"], stdout=log, stderr=log
        )

    def ask(query: str) -> list[Body]:
        # It chooses a port itself: one that was free before may be somebody else's by now.
        found = re.search(r"address=(127\.0\.0\.1:[1-9]\d*)\n", (folder / "log").read_text())
        if found is None:
            return []
        try:
            url = f"http://{found[1]}/api/v1/query?query={quote(query)}"
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
                return json.load(answer)["data"]["result"]
        except OSError:
            return []

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(120)


def test_prometheus_scrapes_it(cluster: Cluster, job: Body, tmp_path: Path) -> None:
    pod = cluster.object("pod", until(lambda: leader(cluster), "a leader"), f"--namespace={NAMESPACE}")
    with prometheus(tmp_path, f"{pod['status']['podIP']}:8080") as ask:
        preparing = 'compression_runs{phase="Preparing"} == 1 or compression_runs{phase="Pending"} == 1'
        until(lambda: ask("up == 1"), "a scrape")
        until(lambda: ask(preparing), "the run to be counted")
        until(lambda: ask('compression_api_requests_total{verb="create",code="201"} >= 1'), "its requests")


def test_the_resource_explains_itself(cluster: Cluster, notes: str) -> None:
    def says(words: str, *asked: str) -> bool:
        return words in cluster.kubectl(*asked, check=False)

    # What the API server tells of itself is gathered by controllers of its own.
    until(lambda: says("smaller model", "explain", "compressionrun.spec.students"), "the explanation")
    until(lambda: says("compressionruns", "api-resources", "--api-group=modelcompression.io"), "the listing")


def test_people_work_with_runs_by_the_roles_they_have(cluster: Cluster, notes: str) -> None:
    for role in ("edit", "view"):
        binding = ["create", "rolebinding", f"test-{role}", f"--clusterrole={role}", f"--user=test-{role}"]
        cluster.kubectl(*binding, "--namespace=models")

    def may(user: str, verb: str, *options: str) -> bool:
        asked = ["auth", "can-i", verb, "compressionruns", f"--as=test-{user}", "--namespace=models", *options]
        return cluster.kubectl(*asked, check=False).strip() == "yes"

    until(lambda: may("edit", "create"), "the roles to be aggregated")
    until(lambda: may("view", "get"), "the roles to be aggregated")
    assert may("edit", "delete")
    assert not may("view", "create")
    assert not may("edit", "update", "--subresource=status")


def test_every_value_is_a_manifest_that_the_api_server_takes(cluster: Cluster, notes: str) -> None:
    bodies = render(yaml.safe_load(EVERYTHING.read_text()) | {"watchNamespaces": ["models"]}, namespace=NAMESPACE)
    assert "NetworkPolicy" in kinds(bodies)
    known = [body for body in bodies if body["kind"] not in ("ServiceMonitor", "CustomResourceDefinition")]
    there = {found["metadata"]["name"] for found in cluster.items("namespaces")}
    for missing in sorted({body["metadata"].get("namespace", NAMESPACE) for body in known} - there):
        cluster.kubectl("create", "namespace", missing)  # where gc looks after a store
    dry = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-"]
    said = cluster.kubectl(*dry, given=yaml.safe_dump_all(known))
    assert len(said.splitlines()) == len(known)


def test_upgrade_and_uninstall_leave_runs_alone(cluster: Cluster, job: Body) -> None:
    def state() -> tuple[Any, ...]:
        run = cluster.object("compressionrun", "llama", "--namespace=models")
        jobs = cluster.items("pytorchjobs", "--namespace=models")
        return run["metadata"]["uid"], run["spec"], [(found["metadata"]["uid"], found["spec"]) for found in jobs]

    before = state()
    install(cluster, replicas=1, operator={"logLevel": "debug"}, crds={"install": False})
    assert len(until(lambda: one_of(cluster.items("pods", f"--namespace={NAMESPACE}")), "one replica")) == 1
    assert state() == before
    cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    assert cluster.items("deployments", f"--namespace={NAMESPACE}") == []
    assert state() == before
    # The CRD that stayed is taken over again, and the operator finds its job where it was.
    install(cluster, replicas=2)
    led = "compression_leader 1.0"  # by one replica or the other
    until(lambda: led in served(cluster, "/metrics"), "the operator to lead again")
    assert state() == before


def one_of(pods: list[Body]) -> list[Body] | None:
    return pods if len(pods) == 1 else None


def test_an_operator_of_one_namespace_keeps_to_it(cluster: Cluster, notes: str) -> None:
    for name in ("tenant-operator", "tenant", "neighbour"):
        namespace(cluster, name)
    cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
    try:
        values = {"watchNamespaces": ["tenant"], "crds": {"install": False}, "rbac": {"userRoles": False}}
        install(cluster, release="small", namespace="tenant-operator", **values)
        for name in ("tenant", "neighbour"):
            cluster.kubectl("apply", "--filename=-", given=run_manifest("llama", name))
        until(lambda: cluster.items("pytorchjobs", "--namespace=tenant"), "the tenant's job")
        account = "--as=system:serviceaccount:tenant-operator:small-compression-operator"
        for namespace_, answer in (("tenant", "yes"), ("neighbour", "no"), ("tenant-operator", "no")):
            asked = ["auth", "can-i", "list", "pods", account, f"--namespace={namespace_}"]
            assert cluster.kubectl(*asked, check=False).strip().startswith(answer)
        assert cluster.items("pytorchjobs", "--namespace=neighbour") == []
        neighbour = cluster.object("compressionrun", "llama", "--namespace=neighbour")
        assert "status" not in neighbour
    finally:
        cluster.helm("uninstall", "small", "--namespace", "tenant-operator", check=False)
        cluster.kubectl("delete", "namespace", "tenant-operator", "tenant", "neighbour", "--wait=false")
        install(cluster, replicas=2)
