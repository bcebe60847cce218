"""The processes of reaction.py: the operator, and the load that is put on it."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import urllib3

WRITES = ("create", "update", "patch", "delete")
STARTING_SECONDS = 300.0


@dataclass
class Operator:
    """The operator's process; `restart` kills it and starts it anew under the same name."""

    namespace: str
    kubeconfig: Path
    log: Path
    bytecode: Path
    profile: Path | None = None
    port: int | None = None  # which it chooses itself: one that was free before may be somebody else's by now
    peak_mib: float = 0.0
    _process: "subprocess.Popen[bytes] | None" = field(default=None)
    _begins: int = field(default=0)  # of the log, where this process began

    def start(self) -> None:
        self.port = None
        command = [sys.executable, "-m", "compression_operator", "--image", "localhost/pipeline:1"]
        if self.profile is not None:
            command[1:1] = ["-m", "cProfile", "-o", str(self.profile)]
        command += ["--namespace", self.namespace, "--lease-namespace", self.namespace, "--identity", "operator-0"]
        command += ["--host", "127.0.0.1", "--port", "0"]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        # As in the image, Python's compiled files are there; without them a start takes ten seconds, and 25 MiB more.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(self.bytecode)
        if self._process is None:
            subprocess.run([sys.executable, "-c", "import compression_operator.__main__"], env=environment, check=True)
        with self.log.open("a") as log:
            self._begins = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 (this very project)
                command, stdout=log, stderr=log, env=environment | {"KUBECONFIG": str(self.kubeconfig)}
            )

    def end(self, number: int) -> None:
        """Take note of its peak of memory, and end it."""
        if self._process is None or self._process.poll() is not None:
            return
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        kibibytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        self.peak_mib = max(self.peak_mib, kibibytes / 1024)
        self._process.send_signal(number)
        self._process.wait(STARTING_SECONDS)

    def processor_seconds(self) -> float:
        """User and system time that the process has had so far."""
        return self.metrics().get("process_cpu_seconds_total", 0.0)

    def metrics(self) -> dict[str, float]:
        """Its metrics by name and labels; empty while it does not answer."""
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"the operator ended:\n{self.log.read_text()[-3000:]}")
        if self.port is None:
            found = re.search(rb"listening on 127\.0\.0\.1:(\d+): ", self.log.read_bytes()[self._begins :])
            self.port = int(found[1]) if found else None
        if self.port is None:
            return {}
        try:
            answer = urllib3.request("GET", f"http://127.0.0.1:{self.port}/metrics", retries=False, timeout=10)
        except urllib3.exceptions.HTTPError:
            return {}
        return parsed(answer.data.decode())

    def wait_passes(self, runs: int) -> None:
        """Until so many passes went through and none waits. Raises TimeoutError."""
        end = time.monotonic() + STARTING_SECONDS
        while time.monotonic() < end:
            found = self.metrics()
            passes = found.get("compression_reconcile_duration_seconds_count", 0)
            leads = found.get("compression_leader", 0)
            if leads and passes >= runs and not found.get("compression_queue_depth"):
                return
            time.sleep(0.02)
        raise TimeoutError(f"no steady state after {STARTING_SECONDS:g} s:\n{self.log.read_text()[-3000:]}")

    def writes(self) -> float:
        """Requests that write, so far."""
        found = self.metrics().items()
        return sum(
            value for name, value in found if re.search(rf'api_requests_total{{.*verb="({"|".join(WRITES)})"', name)
        )


class Loader:
    """The load's process."""

    def __init__(self, kubeconfig: Path, namespace: str, runs: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("reaction_load.py"))]
        command += ["--kubeconfig", str(kubeconfig), "--namespace", namespace, "--runs", str(runs)]
        self._process = subprocess.Popen(  # noqa: S603 (the script beside this one)
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> Any:
        line = cast(IO[str], self._process.stdout).readline()
        if not line:
            raise RuntimeError("the load ended early; what it said is above")
        return json.loads(line)

    def ask(self, **command: Any) -> Any:
        pipe = cast(IO[str], self._process.stdin)
        pipe.write(json.dumps(command) + "\n")
        pipe.flush()
        return self.answer()

    def processor_seconds(self) -> float:
        """User and system time that the process has had so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def parsed(text: str) -> dict[str, float]:
    """Prometheus' text format as values by name and labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}
