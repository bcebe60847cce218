"""Operator processes as a Deployment would run them: a service account with the operator's rules and no more."""

import base64
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3
from api import JOBS, PATIENCE_SECONDS, RUNS, Api, Body, timed
from rights import in_rbac_words, wait_permitted
from tests.support.runs import a_run
from tests.support.waiting import until

from compression_operator.api.phase_settings import PhaseSettingsByPhase
from compression_operator.backends.kinds import PERMISSIONS
from compression_operator.kube.client import LEASES, Permission

FINAL = ("Succeeded", "Failed")
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ACCOUNT = "operator"


@dataclass
class Namespace:
    """A namespace with a claim named `store`, whose folder is on this machine, and the operator's service account."""

    api: Api
    name: str
    folder: Path  # of the test: kubeconfigs and logs
    store: Path

    @classmethod
    def create(cls, api: Api, title: str, folder: Path) -> "Namespace":
        name = (
            re.sub("[^a-z0-9]+", "-", title.lower().removeprefix("test_"))[:40].strip("-") + f"-{secrets.token_hex(3)}"
        )
        store = folder / "store"
        store.mkdir()
        store.chmod(0o777)
        place = cls(api, name, folder, store)
        # The restricted profile: every pod of ours must be admitted under it.
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        place.claim("store", ["ReadWriteMany"], store)
        api.create(f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": ACCOUNT}})
        place.permit(PERMISSIONS)
        return place

    def claim(self, claim: str, modes: list[str], folder: Path) -> None:
        """A claim bound to a folder of this machine."""
        volume = f"{self.name}-{claim}"
        size = {"storage": "1Gi"}
        spec: Body = {"accessModes": modes, "storageClassName": ""}
        reference = {"claimRef": {"namespace": self.name, "name": claim}, "hostPath": {"path": str(folder)}}
        self.api.create(
            "/api/v1/persistentvolumes", {"metadata": {"name": volume}, "spec": spec | reference | {"capacity": size}}
        )
        wanted = spec | {"volumeName": volume, "resources": {"requests": size}}
        self.api.create(
            f"/api/v1/namespaces/{self.name}/persistentvolumeclaims", {"metadata": {"name": claim}, "spec": wanted}
        )

    @property
    def user(self) -> str:
        """The operator's account, as authorizers know it."""
        return f"system:serviceaccount:{self.name}:{ACCOUNT}"

    def permit(self, rules: Sequence[Permission]) -> None:
        """Let the operator's account do this and nothing else, from now on."""
        body = {"metadata": {"name": ACCOUNT}, "rules": in_rbac_words(rules)}
        path = f"{RBAC}/namespaces/{self.name}/roles"
        if self.api.get(f"{path}/{ACCOUNT}"):
            self.api.call("PUT", f"{path}/{ACCOUNT}", body)
        else:
            self.api.create(path, body)
            binding = {
                "metadata": {"name": ACCOUNT},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
                "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": self.name}],
            }
            self.api.create(f"{RBAC}/namespaces/{self.name}/rolebindings", binding)
        wait_permitted(self.api, self.user, self.name, rules)

    def permit_everywhere(self, rules: Sequence[Permission] = PERMISSIONS) -> None:
        """Let the operator's account do this in every namespace, but for leases, which it needs in its own alone: as a
        cluster-wide installation does.
        """
        self.permit([rule for rule in rules if rule.resource == LEASES.plural])
        widely = [rule for rule in rules if rule.resource != LEASES.plural]
        self.api.create(f"{RBAC}/clusterroles", {"metadata": {"name": self.name}, "rules": in_rbac_words(widely)})
        binding = {
            "metadata": {"name": self.name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": self.name},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": self.name}],
        }
        self.api.create(f"{RBAC}/clusterrolebindings", binding)
        wait_permitted(self.api, self.user, "", widely)

    def lend(self, other: "Namespace") -> str:
        """Let the operator of another namespace do here what it must; returns the path of the binding."""
        path = f"{RBAC}/namespaces/{self.name}/rolebindings"
        binding = {
            "metadata": {"name": "of-another"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": other.name}],
        }
        self.api.create(path, binding)
        wait_permitted(self.api, other.user, self.name, PERMISSIONS)
        return f"{path}/of-another"

    def remove(self) -> None:
        for kind in ("clusterrolebindings", "clusterroles"):
            self.api.delete(f"{RBAC}/{kind}/{self.name}")
        self.api.delete(f"/api/v1/namespaces/{self.name}")
        for volume in self.api.items("/api/v1/persistentvolumes"):
            if volume["spec"].get("claimRef", {}).get("namespace") == self.name:
                self.api.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")

    # -- the operator -------------------------------------------------------------------------------------------------

    def kubeconfig(self, server: str | None = None) -> Path:
        """A kubeconfig of the operator's account, for the API server or for what stands before it."""
        path = f"/api/v1/namespaces/{self.name}/serviceaccounts/{ACCOUNT}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        token = self.api.create(path, asked)["status"]["token"]
        cluster: Body = {"server": server or self.api.server}
        if not server:
            cluster["certificate-authority-data"] = base64.b64encode(self.api.authority.encode()).decode()
        file = self.folder / f"kubeconfig-{'proxy' if server else 'direct'}"
        draft = file.with_suffix(".new")  # an operator that runs reads its credentials anew at any time
        draft.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "tests", "cluster": cluster}],
                    "users": [{"name": ACCOUNT, "user": {"token": token}}],
                    "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": ACCOUNT}}],
                    "current-context": "tests",
                }
            )
        )
        return draft.rename(file)

    @contextmanager
    def operator(self, image: str = "localhost/none:1", *arguments: str, **options: Any) -> Iterator["Operator"]:
        """An operator of this namespace, ready; killed at the end if it still runs."""
        operator = self.start(image, *arguments, **options)
        try:
            operator.wait_ready()
            yield operator
        finally:
            operator.kill()

    def start(
        self,
        image: str = "localhost/none:1",
        *arguments: str,
        identity: str = "operator-0",
        server: str | None = None,
        everywhere: bool = False,
    ) -> "Operator":
        """Start an operator process, of this namespace or of all of them."""
        command = [sys.executable, "-m", "compression_operator", "--image", image]
        command += [] if everywhere else ["--namespace", self.name]
        command += ["--lease-namespace", self.name, "--identity", identity, "--host", "127.0.0.1", "--port", "0"]
        log = self.folder / f"{identity}.log"
        log.touch()
        begins = log.stat().st_size
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        with log.open("a") as file:
            process = subprocess.Popen(
                [*command, "--log-format", "json", *arguments],
                stdout=file,
                stderr=file,
                env=environment | {"KUBECONFIG": str(self.kubeconfig(server))},
            )
        return Operator(process, log, begins)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def submit(self, name: str = "demo", *, behaviour: Body | None = None, edit: Any = None, **spec: Any) -> Body:
        """Create a run of the stand-in's, in a folder of its own on the claim; `behaviour` as in standin.py."""
        body = manifest(name, **spec)
        if edit:
            edit(body)
        folder = self.store / body["spec"]["storage"]["persistentVolumeClaim"].get("subPath", "")
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
        self.behave(behaviour or {}, folder)
        return self.api.create(f"{RUNS}/namespaces/{self.name}/compressionruns", body)

    def behave(self, behaviour: Body, folder: Path) -> None:
        """Tell the stand-in how to behave from now on."""
        new = folder / "behaviour.json.new"
        new.write_text(json.dumps(behaviour))
        new.chmod(0o644)
        new.rename(folder / "behaviour.json")

    def run_path(self, name: str = "demo") -> str:
        return f"{RUNS}/namespaces/{self.name}/compressionruns/{name}"

    def run(self, name: str = "demo") -> Body:
        return self.api.call("GET", self.run_path(name))

    def status(self, name: str = "demo") -> Body:
        return self.run(name).get("status", {})

    def edit(self, name: str = "demo", **spec: Any) -> Body:
        return self.api.merge(self.run_path(name), {"spec": spec})

    def wait_phase(self, *phases: str, name: str = "demo", seconds: float = 420) -> Body:
        """Wait for one of these phases; returns the status."""
        seen: Body = {}

        def there() -> bool:
            seen.clear()
            seen.update(self.status(name))
            return seen.get("phase") in phases

        try:
            until(there, f"{name} to be {' or '.join(phases)}", seconds=seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}; its status is {json.dumps(seen, indent=1)}") from error
        return seen

    def wait_step(self, step: str, *states: str, name: str = "demo", seconds: float = 300) -> Body:
        """Wait until a step is in one of these states; returns the step."""

        def there() -> Body | None:
            found = step_of(self.status(name), step)
            return found if found.get("state") in states else None

        try:
            return until(there, f"{step} to be {' or '.join(states)}", seconds=seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}; status is {json.dumps(self.status(name), indent=1)}") from error

    def jobs(self) -> list[Body]:
        return self.api.items(f"{JOBS}/namespaces/{self.name}/pytorchjobs")

    def pods(self, job: str | None = None) -> list[Body]:
        query = {"labelSelector": f"training.kubeflow.org/job-name={job}"} if job else {}
        return self.api.items(f"/api/v1/namespaces/{self.name}/pods", **query)

    def starts(self, folder: str = "") -> list[tuple[str, int]]:
        """(step, attempt) of every time that the stand-in was started."""
        file = self.store / folder / "starts"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def events(self) -> list[Body]:
        return self.api.items(f"/apis/events.k8s.io/v1/namespaces/{self.name}/events")


@dataclass
class Operator:
    """An operator's process."""

    process: "subprocess.Popen[bytes]"
    log: Path
    _from: int
    _port: int = field(default=0)

    @property
    def port(self) -> int:
        """The port of its endpoints, which it says in its log."""
        if not self._port:
            found = re.search(r"listening on 127\.0\.0\.1:(\d+)", self.output())
            self._port = int(found[1]) if found else 0
        return self._port

    def output(self) -> str:
        """What it has logged since it started; whole lines, for it may be writing one."""
        ended = self.process.poll() is not None
        text = self.log.read_bytes()[self._from :]
        return (text if ended else text[: text.rfind(b"\n") + 1]).decode()

    def lines(self) -> list[Body]:
        """Its log's lines."""
        return [json.loads(line) for line in self.output().splitlines() if line.startswith("{")]

    def ask(self, path: str) -> tuple[int, str]:
        """GET an endpoint: status (0 where nobody answers, be it within PATIENCE_SECONDS) and text."""
        if not self.port:
            return 0, ""
        try:
            # Not to answer for a while is no fault of it on a busy machine.
            url = f"http://127.0.0.1:{self.port}{path}"
            answer = urllib3.request("GET", url, retries=False, timeout=PATIENCE_SECONDS)
        except urllib3.exceptions.HTTPError:
            return 0, ""
        return answer.status, answer.data.decode()

    def wait_ready(self, seconds: float = 300) -> None:
        """Importing alone took 135 s on a busy machine."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the operator ended with {self.process.returncode}:\n{self.output()[-3000:]}")
            return self.ask("/readyz")[0] == 200

        until(ready, "the operator to be ready", seconds=seconds)

    def wait_line(self, text: str) -> None:
        until(lambda: text in self.output(), f"{text!r} in the operator's log")

    def wait_leads(self) -> None:
        """It may be ready before: a follower is, too."""
        until(self.leads, "it to lead")

    def leads(self) -> bool:
        return "compression_leader 1.0" in self.ask("/metrics")[1]

    def wait_end(self, seconds: float = 300) -> int:
        """Wait until it has ended by itself; its exit code."""
        return self.process.wait(seconds)

    def terminate(self) -> float:
        """SIGTERM; returns how long it took to end (see `timed`)."""
        self.process.send_signal(signal.SIGTERM)
        return timed(lambda: self.process.poll() is not None, "the operator to end")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)


@contextmanager
def leader_and_follower(place: Namespace) -> Iterator[tuple[Operator, Operator]]:
    """Two replicas; the second one starts once the first leads, which it need not yet do when it is ready."""
    with place.operator() as first:
        first.wait_leads()
        with place.operator(identity="operator-1") as second:
            assert first.leads() and not second.leads()
            yield first, second


def manifest(name: str = "demo", **spec: Any) -> Body:
    """A run of eight steps on CPU: prepare, finetune, and prune, distill, export of two students."""
    cpu = {"gpusPerNode": 0, "terminationGracePeriodSeconds": 10}
    run = a_run(name).finetune(steps=200, globalBatchSize=4).distill(steps=100, globalBatchSize=4).claim("store")
    run = run.student("width", hiddenSize=64).student("depth", dropLayers=[3])
    return run.spec(phases={phase: dict(cpu) for phase in PhaseSettingsByPhase.model_fields}).spec(**spec).body()


def step_of(status: Body, name: str) -> Body:
    """A step of a status; empty where there is none."""
    return next((step for step in status.get("steps", []) if step["name"] == name), {})


def condition_of(status: Body, kind: str) -> Body:
    """A condition of a status; empty where there is none."""
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})
