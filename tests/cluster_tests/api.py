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

Body = dict[str, Any]

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

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "application/json", **query: Any) -> Body:
        """One request; `body` is JSON, or text of the given kind. Raises Refused."""
        answer = self._pool.request(
            method,
            f"{self.server}{path}{'?' if query else ''}{urlencode(query)}",
            body=body if body is None or isinstance(body, str | bytes) else json.dumps(body),
            headers={**self.headers, "Content-Type": kind, "Accept": "application/json"},
            timeout=60,
        )
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

        def served() -> bool:
            found = self.get(path) or {}
            conditions = {c["type"]: c["status"] for c in (found.get("status") or {}).get("conditions") or ()}
            try:
                self.call("GET", f"/apis/{group}/{version}/{body['spec']['names']['plural']}")
            except Refused:
                return False  # not found, or "storage is (re)initializing"
            return conditions.get("Established") == "True"

        wait_for(served, "the CRD to be served")


def wait_for(condition: Callable[[], Any], what: str, *, seconds: float = 90, every: float = 0.1) -> Any:
    """Ask until the answer is true, and return it. Raises TimeoutError, which says what was waited for."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(every)
