"""/metrics over TLS, where a real API server says who asks and whether they may; and a real Prometheus asks."""

import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3
from api import Api, Body
from operators import RBAC, Namespace, Operator
from rights import in_rbac_words
from test_prometheus import listening_on, prometheus
from tests.support.waiting import until

from compression_operator.cluster.secure_metrics import REVIEWS

__all__ = ["prometheus"]  # the fixture


@contextmanager
def bound(api: Api, name: str, rules: list[Body], account: str, namespace: str) -> Iterator[None]:
    """Let a service account do this in the whole cluster."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subjects = [{"kind": "ServiceAccount", "name": account, "namespace": namespace}]
    try:
        api.create(f"{RBAC}/clusterroles", {"metadata": {"name": name}, "rules": rules})
        api.create(f"{RBAC}/clusterrolebindings", {"metadata": {"name": name}, "roleRef": role, "subjects": subjects})
        yield
    finally:
        api.delete(f"{RBAC}/clusterrolebindings/{name}")
        api.delete(f"{RBAC}/clusterroles/{name}")


def token(namespace: Namespace, account: str) -> str:
    path = f"/api/v1/namespaces/{namespace.name}/serviceaccounts"
    namespace.api.create(path, {"metadata": {"name": account}})
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
    return namespace.api.create(f"{path}/{account}/token", asked)["status"]["token"]


def certificate(folder: Path) -> Path:
    folder.mkdir()
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-days", "2", "-subj", "/CN=metrics"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.crt"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "tls.crt"


def secure_port(operator: Operator) -> int:
    """The port that it has chosen, which it says in its log."""
    found = re.search(r"listening on 127\.0\.0\.1:(\d+) over TLS", operator.output())
    return int(found[1]) if found else 0


@pytest.fixture
def reader(namespace: Namespace) -> Iterator[str]:
    """The token of an account that may read metrics; the operator's may ask whether it may."""
    given, api = token(namespace, "reader"), namespace.api
    name = namespace.name
    may_get = [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    with (
        bound(api, f"{name}.auth", in_rbac_words(REVIEWS), "operator", name),
        bound(api, f"{name}.reader", may_get, "reader", name),
    ):
        yield given


def test_who_may_gets_them_and_nobody_else(namespace: Namespace, reader: str, prometheus: str, tmp_path: Path) -> None:
    trusted = certificate(tmp_path / "tls")
    arguments = ["--secure-metrics-port=0", f"--metrics-certificate={trusted.parent}"]
    stranger = token(namespace, "stranger")
    pool = urllib3.PoolManager(ssl_context=ssl.create_default_context(cafile=str(trusted)), retries=False)
    with namespace.operator("localhost/none:1", *arguments) as operator:
        port = until(lambda: secure_port(operator), "the port of /metrics")

        def status(**headers: str) -> int:
            return pool.request("GET", f"https://127.0.0.1:{port}/metrics", headers=headers).status

        # Authorizers learn of a rule a little later.
        until(lambda: status(Authorization=f"Bearer {reader}") == 200, "the reader to be let in")
        until(lambda: status(Authorization=f"Bearer {stranger}") == 403, "the stranger to be refused")
        assert (status(), status(Authorization="Bearer nonsense")) == (401, 401)
        assert operator.ask("/healthz")[0] == 200 and operator.ask("/metrics")[0] == 404
        scraped(prometheus, port, reader, trusted, tmp_path)


def scraped(program: str, port: int, reader: str, trusted: Path, folder: Path) -> None:
    """A Prometheus that is told to scrape as a ServiceMonitor would tell it."""
    (folder / "token").write_text(reader)
    scrape = {
        "job_name": "operator",
        "scheme": "https",
        "authorization": {"credentials_file": str(folder / "token")},
        "tls_config": {"ca_file": str(trusted)},
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
    }
    (folder / "prometheus.yml").write_text(
        json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]})
    )
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([program, *arguments, "--web.listen-address=127.0.0.1:0"], stdout=log, stderr=log)
    try:
        web = until(lambda: listening_on(folder / "log"), "Prometheus to say where it listens")

        def up() -> bool:
            url = f"http://127.0.0.1:{web}/api/v1/query"
            answer = urllib3.request("GET", url, fields={"query": "compression_leader == 1"}, retries=False)
            return answer.status == 200 and bool(answer.json()["data"]["result"])

        until(up, "Prometheus to scrape over TLS")
    finally:
        server.terminate()
        server.wait(120)
