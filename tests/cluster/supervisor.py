"""The cluster's first process: starts the parts in order, reaps them, and takes them all along when it ends.

Run by `up` as `python -m tests.cluster.supervisor STATE`. It moves into the cluster's namespaces; in its own process id
namespace it is process 1, so the kernel ends every container and helper with it, however it ends itself.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from . import components, namespaces, network
from .config import Config
from .errors import ClusterError
from .paths import State
from .processes import Identity, write_json

# A cold page cache on a busy machine: the API server alone may take half a minute.
_DEADLINE_SECONDS = 300.0
_PROBE_INTERVAL_SECONDS = 0.1


@dataclass
class _Part:
    unit: components.Unit
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    ready_after: float | None = None
    exit_code: int | None = None

    @property
    def ready(self) -> bool:
        return self.ready_after is not None


class Supervisor:
    """Starts each unit when those before it are ready; a part that ends is reported, never started again."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._parts = {unit.name: _Part(unit) for unit in components.units(config)}
        self._begun = time.monotonic()
        self._stop = False

    def run(self) -> int:
        """Until SIGTERM; returns the exit code. Every child is killed at the end: nothing of the state is kept."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            if not self._bring_up():
                return 1
            self._report("ready")
            while not self._stop:
                if self._reap():
                    self._report("ready")
                time.sleep(0.25)
            return 0
        finally:
            self._kill()

    def _on_signal(self, number: int, frame: object) -> None:
        self._stop = True

    def _bring_up(self) -> bool:
        while not all(part.ready for part in self._parts.values()):
            if self._stop:
                return False
            self._reap()
            for part in self._parts.values():
                self._advance(part)
            if reason := self._failure():
                self._report("failed", reason)
                return False
            self._report("starting")
            time.sleep(_PROBE_INTERVAL_SECONDS)
        return True

    def _advance(self, part: _Part) -> None:
        now = time.monotonic()
        if part.process is None:
            if all(self._parts[name].ready for name in part.unit.after):
                self._start(part)
        elif part.unit.is_task:
            if part.exit_code == 0:
                part.ready_after = part.ready_after or now - self._begun
            elif part.exit_code is not None and now - part.started_at > 0.5:
                self._start(part)
        elif not part.ready and part.exit_code is None and part.unit.ready is not None and part.unit.ready():
            part.ready_after = now - self._begun

    def _start(self, part: _Part) -> None:
        part.exit_code, part.started_at = None, time.monotonic()
        environment = os.environ | {"TMPDIR": f"{self._config.root}/tmp"} | dict(part.unit.environment)
        # Without a process id namespace nothing else would end the children of a supervisor that was killed.
        tie = [] if "pid" in self._config.namespaces else ["setpriv", "--pdeathsig", "KILL"]
        with self._config.state.log(part.unit.name).open("ab") as log:
            part.process = subprocess.Popen(
                [*tie, *part.unit.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd="/",
                start_new_session=True,
            )

    def _reap(self) -> bool:
        """Collect ended children, also those that were left to process 1; returns whether a part was among them."""
        changed = False
        for part in self._parts.values():
            if part.process is not None and part.exit_code is None:
                part.exit_code = part.process.poll()
                changed |= part.exit_code is not None
        if os.getpid() == 1:
            _reap_orphans({part.process.pid for part in self._parts.values() if part.process})
        return changed

    def _failure(self) -> str | None:
        for part in self._parts.values():
            if not part.unit.is_task and part.exit_code is not None:
                return f"{part.unit.name} ended with exit code {part.exit_code}.\n{self._tail(part)}"
        if time.monotonic() - self._begun > _DEADLINE_SECONDS:
            late = [part for part in self._parts.values() if not part.ready and part.process is not None]
            names = ", ".join(part.unit.name for part in late)
            return f"Not ready after {_DEADLINE_SECONDS:.0f} s: {names}.\n{self._tail(late[0]) if late else ''}"
        return None

    def _tail(self, part: _Part) -> str:
        log = self._config.state.log(part.unit.name)
        lines = log.read_text(errors="replace").splitlines()[-10:]
        return "\n".join([f"The end of {log}:", *lines])

    def _report(self, phase: str, message: str = "") -> None:
        parts = {}
        for name, part in self._parts.items():
            identity = Identity.of(part.process.pid) if part.process and part.exit_code is None else None
            parts[name] = {
                "pid": identity.pid if identity else None,
                "started": identity.started if identity else None,
                "readyAfterSeconds": part.ready_after and round(part.ready_after, 2),
                "exitCode": part.exit_code,
                "task": part.unit.is_task,
            }
        write_json(self._config.state.status, {"phase": phase, "message": message, "parts": parts})

    def _kill(self) -> None:
        for part in self._parts.values():
            if part.process is not None and part.process.poll() is None:
                part.process.kill()
        for part in self._parts.values():
            if part.process is not None:
                part.process.wait()


def _reap_orphans(ours: set[int]) -> None:
    """Collect children that are nobody's (process 1 inherits them), and leave ours to their Popen objects."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in ours:
            return
        os.waitpid(found.si_pid, 0)


def main(state: State) -> int:
    config = Config.read(state)
    if config is None:
        raise ClusterError(f"There is no {state.config}: start the cluster with `make cluster`.")
    namespaces.unshare(config.namespaces)
    child = os.fork()
    if child:
        # Seen from the machine: the child sees itself as process 1.
        identity = Identity.of(child)
        if identity is not None:
            identity.write(state.supervisor)
        return 0
    try:
        if config.block:
            network.settle(config.block)
            private = state.root / "private"
            private.mkdir()
            namespaces.settle(private)
        return Supervisor(config).run()
    except Exception as error:
        traceback.print_exc()
        write_json(state.status, {"phase": "failed", "message": str(error), "parts": {}})
        return 1


if __name__ == "__main__":
    sys.exit(main(State(Path(sys.argv[1]))))
