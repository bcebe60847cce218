"""An API server of our own, with PyTorchJobs and without CompressionRuns; nobody acts on what is written there."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api import Api
from tests.cluster.components import units
from tests.cluster.config import Config
from tests.cluster.down import down
from tests.cluster.paths import State
from tests.cluster.processes import Identity
from tests.cluster.up import up_bare
from tests.support.waiting import until


class Bare:
    """etcd and an API server, which can go back to an earlier state."""

    def __init__(self, state: State, kubeconfig: Path) -> None:
        self.api = Api(kubeconfig)
        config = Config.read(state)
        assert config is not None
        self._units = [unit for unit in units(config) if unit.name in ("etcd", "kube-apiserver")]
        self._data, self._copy = state.root / "etcd", state.root / "backup"
        parts = json.loads(state.status.read_text())["parts"]
        self._running = [self._identity(parts[unit.name]["pid"]) for unit in self._units]
        self._ours: list[subprocess.Popen[bytes]] = []

    def backup(self) -> None:
        """Copy what etcd has on its disk at one time."""
        etcd = self._running[0]
        etcd.signal(signal.SIGSTOP)
        shutil.copytree(self._data, self._copy)
        etcd.signal(signal.SIGCONT)

    def restore(self) -> None:
        """Have etcd go on from the copy, and the API server begin anew, as Kubernetes says to."""
        for identity in reversed(self._running):
            identity.signal(signal.SIGKILL)
            until(lambda identity=identity: not identity.alive(), "it to end")
        shutil.rmtree(self._data)
        shutil.copytree(self._copy, self._data)
        for unit in self._units:
            self._ours.append(subprocess.Popen(unit.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            assert unit.ready is not None
            until(unit.ready, f"{unit.name} to be ready", seconds=300)

    def end(self) -> None:
        for process in reversed(self._ours):
            process.kill()
            process.wait()

    @staticmethod
    def _identity(pid: int) -> Identity:
        found = Identity.of(pid)
        assert found is not None
        return found


@contextmanager
def bare(folder: Path) -> Iterator[Bare]:
    """It is there until the end of the block."""
    state = State.at(folder / "cluster")
    cluster = up_bare(state, lambda sentence: None)
    try:
        found = Bare(state, cluster.kubeconfig)
        try:
            yield found
        finally:
            found.end()
    finally:
        down(state, lambda sentence: None)
