"""The API server as the tests speak to it: JSON over HTTP, apart from the operator's own client."""

import base64
import json
import os
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
import yaml
from tests.support.waiting import until

Body = dict[str, Any]

PATIENCE_SECONDS = 120.0
"""For one answer of the API server."""

ROUND_SECONDS = 0.5

CRD = Path(__file__).parents[2] / "crds" / "compressionruns.modelcompression.io.yaml"

JSON = "application/json"
DISCOVERY = f"{JSON};g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

RUNS = "/apis/modelcompression.io/v1alpha1"
JOBS = "/apis/kubeflow.org/v1"


class Refused(Exception):
    """The API server's refusal."""

    def __init__(self, code: int, status: Body) -> None:
        super().__init__(f"{code}: {status.get('message')}")
        self.code = code
        self.status = status


@dataclass(frozen=True)
class Login:
    """What the current context of a kubeconfig says."""

    server: str
    authority: str  # PEM; empty: the system's
    token: str
    certificate: str  # PEM, with its key
    key: str

    @classmethod
    def of(cls, kubeconfig: Path) -> "Login":
        """Read it: tokens, client certificates and exec plugins alike."""
        config = yaml.safe_load(kubeconfig.read_text())

        def named(kind: str, name: str) -> Body:
            return next(item for item in config[f"{kind}s"] if item["name"] == name).get(kind) or {}

        def text(entry: Body, field: str) -> str:
            if data := entry.get(f"{field}-data"):
                return base64.b64decode(data).decode()
            return (kubeconfig.parent / entry[field]).read_text() if entry.get(field) else ""

        context = named("context", config["current-context"])
        cluster, user = named("cluster", context["cluster"]), named("user", context["user"])
        told: Body = _told_by_plugin(user["exec"]) if "exec" in user else {}
        return cls(
            server=cluster["server"],
            authority=text(cluster, "certificate-authority"),
            token=told.get("token") or user.get("token") or "",
            certificate=told.get("clientCertificateData") or text(user, "client-certificate"),
            key=told.get("clientKeyData") or text(user, "client-key"),
        )


def _told_by_plugin(plugin: Body) -> Body:
    """What an exec plugin says (client.authentication.k8s.io)."""
    more = {item["name"]: item["value"] for item in plugin.get("env") or ()}
    asked = {"kind": "ExecCredential", "apiVersion": plugin["apiVersion"], "spec": {"interactive": False}}
    done = subprocess.run(
        [plugin["command"], *(plugin.get("args") or ())],
        env={**os.environ, **more, "KUBERNETES_EXEC_INFO": json.dumps(asked)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)["status"]


class Api:
    """The API server that a kubeconfig names, as the user of its current context."""

    def __init__(self, kubeconfig: Path) -> None:
        login = Login.of(kubeconfig)
        self.server = login.server
        self.authority = login.authority
        self.headers = {"Authorization": f"Bearer {login.token}"} if login.token else {}
        tls = ssl.create_default_context(cadata=login.authority or None)
        if login.certificate:
            with tempfile.NamedTemporaryFile("w") as pem:  # the only way in that the ssl module has
                pem.write(login.certificate + login.key)
                pem.flush()
                tls.load_cert_chain(pem.name)
        self._pool = urllib3.PoolManager(ssl_context=tls, retries=False, maxsize=8)

    def call(
        self, method: str, path: str, body: Any = None, *, kind: str = JSON, accept: str = JSON, **query: Any
    ) -> Body:
        """One request; `body` is JSON, or text of the given kind. Raises Refused.

        Asked to come again later (e.g. as "storage is (re)initializing" after a CRD has changed) it does, as every
        Kubernetes client: nothing has been done then. What only reads is asked again wherever a server may stumble: a
        connection that is closed as idle just now, a request that took too long inside.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._pool.request(
                    method,
                    f"{self.server}{path}{'?' if query else ''}{urlencode(query)}",
                    body=body if body is None or isinstance(body, str | bytes) else json.dumps(body),
                    headers={**self.headers, "Content-Type": kind, "Accept": accept},
                    timeout=PATIENCE_SECONDS,
                )
            except urllib3.exceptions.ProtocolError:
                if method != "GET" or time.monotonic() > end:
                    raise
                time.sleep(ROUND_SECONDS)
                continue
            pause = answer.headers.get("Retry-After", "")
            again = answer.status in (429, 503) and pause.isdigit()
            again = again or (method == "GET" and answer.status >= 500)
            if not again or time.monotonic() > end:
                break
            time.sleep(int(pause) if pause.isdigit() else ROUND_SECONDS)
        text = answer.data.decode(errors="replace")
        if answer.status >= 400:
            raise Refused(answer.status, json.loads(text) if text.startswith("{") else {"message": text})
        return json.loads(text) if text.startswith("{") else {"text": text}

    def get(self, path: str, **query: Any) -> Body | None:
        """An object or a list; None where there is none."""
        try:
            return self.call("GET", path, **query)
        except Refused as refused:
            if refused.code == 404:
                return None
            raise

    def items(self, path: str, **query: Any) -> list[Body]:
        """The objects of a list."""
        return self.call("GET", path, **query)["items"]

    def create(self, path: str, body: Body) -> Body:
        return self.call("POST", path, body)

    def merge(self, path: str, body: Body) -> Body:
        """A JSON merge patch."""
        return self.call("PATCH", path, body, kind="application/merge-patch+json")

    def delete(self, path: str, **options: Any) -> None:
        """Delete; what is not there counts as deleted."""
        try:
            self.call("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", **options})
        except Refused as refused:
            if refused.code != 404:
                raise

    def apply_crd(self, file: Path) -> None:
        """Server-side apply a CRD and wait until it is served."""
        body = yaml.safe_load(file.read_text())
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{body['metadata']['name']}"
        self.call(
            "PATCH", path, json.dumps(body), kind="application/apply-patch+yaml", fieldManager="tests", force="true"
        )
        group, version = body["spec"]["group"], body["spec"]["versions"][0]["name"]
        plural, kind = body["spec"]["names"]["plural"], body["spec"]["names"]["kind"]

        def served() -> bool:
            found = self.get(path) or {}
            conditions = {c["type"]: c["status"] for c in (found.get("status") or {}).get("conditions") or ()}
            listed = self.get(f"/apis/{group}/{version}/{plural}") is not None
            return listed and conditions.get("Established") == "True"

        def discovered() -> bool:
            """What kubectl asks first; told by a controller of its own, as is what it explains and validates by."""
            groups = self.call("GET", "/apis", accept=f"{DISCOVERY},{JSON}").get("items")
            if groups is None:  # an API server from before 1.30
                return self.get(f"/apis/{group}/{version}") is not None
            versions = [v for found in groups if found["metadata"]["name"] == group for v in found["versions"]]
            return plural in [resource["resource"] for v in versions for resource in v.get("resources", ())]

        def explained() -> bool:
            schemas = (self.get(f"/openapi/v3/apis/{group}/{version}") or {}).get("components", {}).get("schemas", {})
            return any(name.endswith(f".{kind}") for name in schemas)

        until(served, "the CRD to be served")
        until(discovered, "the CRD to be discovered")
        until(explained, "the CRD to be in the OpenAPI documents")


def timed(condition: Callable[[], Any], what: str, *, every: float = 0.05) -> float:
    """Seconds until the answer is true, of a machine that runs. Where even asking is held up, so is what is timed, and
    that is no time of its own: of each round half a second counts at most. Raises TimeoutError.
    """
    passed, last = 0.0, time.monotonic()

    def counted() -> bool:
        nonlocal passed, last
        found = bool(condition())
        now = time.monotonic()
        passed, last = passed + min(now - last, ROUND_SECONDS), now
        return found

    until(counted, what, every=every)
    return passed
