"""A user at a terminal: the commands typed, what they showed, and what was seen of the run meanwhile."""

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from api import JOBS, RUNS, Api, Body
from tests.cluster.paths import REPOSITORY
from tests.support.waiting import until

SYSTEM, RELEASE = "compression-system", "compression-operator"


@dataclass
class Console:
    """A terminal in the repository's root; everything typed and shown is kept."""

    bin: Path
    kubeconfig: Path
    transcript: Path
    exported: dict[str, str] = field(default_factory=dict)  # what its shell has exported

    def run(self, *command: str, check: bool = True) -> str:
        """Run kubectl, helm, or a program of this Python's environment; returns what it prints."""
        began = time.monotonic()
        done = subprocess.run(
            [self._program(command[0]), *command[1:]],
            env=self._environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        shown = done.stdout + done.stderr
        with self.transcript.open("a") as file:
            file.write(f"$ {' '.join(command)}\n{shown}# {time.monotonic() - began:.1f} s\n")
        assert done.returncode == 0 or not check, f"{' '.join(command)}: {shown}"
        return shown

    def shell(self, line: str) -> str:
        """Run a line as a person's shell would: what it exports, and what it sets, stays. Returns what it prints."""
        kept = self.transcript.with_name("environment")
        script = f"set -a\n{line}\ncode=$?\nenv --null > {kept}\nexit $code"
        shown = self.run("bash", "-c", script)
        self.exported = dict(entry.split("=", 1) for entry in kept.read_text().split("\0") if entry)
        return shown

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.run("kubectl", *arguments, check=check)

    def watch(self, *arguments: str) -> "subprocess.Popen[bytes]":
        """Start a kubectl that goes on; see `watched`."""
        with self._watch.open("w") as file:
            return subprocess.Popen(
                [self._program("kubectl"), *arguments], stdout=file, stderr=file, env=self._environment
            )

    def watched(self) -> str:
        """What `watch` has shown so far; whole lines, for it may be writing one."""
        text = self._watch.read_text()
        return text[: text.rfind("\n") + 1]

    @property
    def _watch(self) -> Path:
        return self.transcript.with_name("watch.txt")

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | self.exported | {"KUBECONFIG": str(self.kubeconfig)}

    def _program(self, name: str) -> str:
        return str(self.bin / name) if name in ("kubectl", "helm") else name


@dataclass
class Story:
    """The run named `demo`, and what was seen of it."""

    api: Api
    console: Console
    namespace: str
    store: Path  # the claim's folder on this machine
    pods: dict[str, Body] = field(default_factory=dict)  # by UID: those of the run, as they were last
    # As they were when the run had ended:
    run: Body = field(default_factory=dict)
    jobs: list[Body] = field(default_factory=list)
    events: list[Body] = field(default_factory=list)  # about the run

    @property
    def path(self) -> str:
        return f"{RUNS}/namespaces/{self.namespace}/compressionruns/demo"

    @property
    def status(self) -> Body:
        return self.run.get("status", {})

    def look(self) -> str:
        """Look at the run and its pods, and remember them; returns the run's phase."""
        query = {"labelSelector": "app.kubernetes.io/managed-by=compression-operator"}
        for pod in self.api.items(f"/api/v1/namespaces/{self.namespace}/pods", **query):
            self.pods[pod["metadata"]["uid"]] = pod
        self.run = self.api.call("GET", self.path)
        return self.status.get("phase", "")

    def end(self) -> None:
        """Look at the rest, once the run has ended: at the last pods' ends too, and at Events, which come after it."""
        until(lambda: "RunSucceeded" in [event["reason"] for event in self._about_the_run()], "the last Event")
        self.look()
        self.jobs = self.api.items(f"{JOBS}/namespaces/{self.namespace}/pytorchjobs")
        self.events = self._about_the_run()

    def _about_the_run(self) -> list[Body]:
        events = self.api.items(f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events")
        return [event for event in events if event["regarding"]["kind"] == "CompressionRun"]

    def pods_of(self, step: str) -> dict[str, Body]:
        """The pods of a step, by what they are in their job: master or worker."""
        found = [pod for pod in self.pods.values() if pod["metadata"]["labels"]["modelcompression.io/step"] == step]
        roles = {pod["metadata"]["labels"]["training.kubeflow.org/replica-type"]: pod for pod in found}
        assert len(roles) == len(found), f"{step} had {len(found)} pods"
        return roles

    def operators_log(self, *options: str) -> str:
        """What the operator has logged."""
        return self.console.kubectl("logs", f"--namespace={SYSTEM}", f"deployment/{RELEASE}", *options, check=False)

    def evidence(self) -> str:
        """What a person needs to find out what went wrong."""
        kubectl = self.console.kubectl
        told = [self.console.transcript.read_text(), yaml.safe_dump(self.status)]
        told.append(kubectl("get", "pytorchjobs,pods", "--output=wide", check=False))
        told.append(kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)[-6000:])
        for pod in self.pods.values():
            name = pod["metadata"]["name"]
            if pod["status"].get("phase") != "Succeeded":
                states = [c.get("state") for c in pod["status"].get("containerStatuses") or ()]
                told.append(f"{name}: {json.dumps(states)} {json.dumps(pod['status'].get('conditions'))}")
                told.append(kubectl("logs", name, "--all-containers", "--tail=40", check=False))
        return "\n\n".join([*told, self.operators_log("--tail=40")])
