"""Real launchers with real ranks; only the phase that they run is the test's."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import until

FINGERPRINT = "0123456789abcdef0123456789abcdef"
NAME = f"prune-{FINGERPRINT}"

# Python runs `sitecustomize` in every process: the module that a rank imports as its phase is there already.
_SITE = """
import os, sys, types
module = types.ModuleType("compression_pipeline.phases.prune")
exec(compile(os.environ["TEST_PHASE"], "phase of the test", "exec"), module.__dict__)
sys.modules[module.__name__] = module
"""

_HEAD = """
import os, signal, sys, time
from pathlib import Path

rank, ranks = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))

class Result(dict):
    def to_json(self):
        return dict(self)

def publish(job, context, result):
    with context.store.draft("prune", job.fingerprint) as draft:
        (draft.path / "weights").write_text("x")
        return draft.publish(config={}, inputs={}, result=result)
"""

PUBLISH = """
def run(job, context):
    publish(job, context, {"parameters": 7})
    return Result(parameters=7)
"""


@dataclass
class Launched:
    """A launcher that runs, or has run."""

    process: subprocess.Popen[str]
    termination_file: Path
    output: str = ""
    errors: str = ""

    def wait(self, timeout: float = 480) -> int:
        self.output, self.errors = self.process.communicate(timeout=timeout)
        return self.process.returncode

    @property
    def termination(self) -> dict[str, Any]:
        return json.loads(self.termination_file.read_text())

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == kind]


class Launch:
    """Starts launchers that share one store, and ends them with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.heartbeat = self.store / "work" / FINGERPRINT / "heartbeat"
        self._started: list[Launched] = []
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(_SITE)

    def __call__(
        self,
        phase: str,
        *,
        attempt: int = 1,
        environment: dict[str, str] | None = None,
        command: Sequence[str] = ("-m", "compression_pipeline", "prune"),
        **job: Any,
    ) -> Launched:
        """`phase`: source of a module with `run(job, context)`; `here` in it is this launch's folder. `command`: what
        Python runs.
        """
        told = {
            "run": "r",
            "step": "prune-width",
            "attempt": attempt,
            "fingerprint": FINGERPRINT,
            "store": str(self.store),
            "data": "prepare-x",
            "teacher": "prepare-x",
            "sequenceLength": 8,
            "prune": {"layers": 2},
            "gracePeriodSeconds": 60,
        }
        path = self.folder / f"termination-{len(self._started)}.json"
        own = {
            "COMPRESSION_CONFIG": json.dumps(told | job),
            "COMPRESSION_TERMINATION_MESSAGE": str(path),
            "PYTHONPATH": str(self.folder / "site"),
            "TEST_PHASE": f"{_HEAD}\nhere = Path({str(self.folder)!r})\n{textwrap.dedent(phase)}",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | own | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        launched = Launched(process, path)
        self._started.append(launched)
        return launched

    @property
    def adopted(self) -> dict[str, Any]:
        """What a job reports that has found the artifact of `PUBLISH`."""
        manifest = (self.store / "artifacts" / NAME / "manifest.json").read_bytes()
        return {"parameters": 7, "cached": True, "digest": hashlib.sha256(manifest).hexdigest()}

    def close(self) -> None:
        for launched in self._started:
            if launched.process.poll() is None:
                launched.process.send_signal(signal.SIGKILL)
                launched.process.wait()
            for stream in (launched.process.stdin, launched.process.stdout, launched.process.stderr):
                if stream is not None:
                    stream.close()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie doesn't)."""
    return _state(Path(f"/proc/{pid}/stat")) not in "ZX"


def pause(*pids: int) -> None:
    """Stop processes, all their threads: one in the midst of a system call ends that first."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        threads = Path(f"/proc/{pid}/task")
        until(lambda of=threads: {_state(path) for path in of.glob("*/stat")} <= set("TZX"), f"{pid} stands still")


def _state(stat: Path) -> str:
    """Of a process or a thread; X where it is gone."""
    try:
        status = stat.read_text()
    except OSError:
        return "X"
    return status[status.rindex(")") + 2]
