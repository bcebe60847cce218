"""The rank processes of this node: how they are started, told to stop, and made sure to be gone."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from compression_pipeline.config import PHASES, JobConfig, ParallelLayout, Phase
from compression_pipeline.config.schemes import offline_variables, secret_variables
from compression_pipeline.context import LAUNCH_VARIABLE
from compression_pipeline.errors import UserError
from compression_pipeline.machine import children, free_port
from compression_pipeline.store.system import processors

from .forked_rank import ForkedRank
from .outcome import FOLDER_VARIABLE

LAUNCHER_VARIABLE = "COMPRESSION_LAUNCHER_PID"
_WORKER = "compression_pipeline.worker"
_TORCHRUN = "compression_pipeline.launcher.torchrun"


@dataclass(frozen=True)
class Rendezvous:
    """Where the nodes of the job meet, as the training operator (PET_*, MASTER_*) and the configuration say."""

    layout: ParallelLayout
    node: int = 0
    master: str = "127.0.0.1"
    port: int | None = None  # None: of one node, whichever is free
    timeout: int = 600  # seconds that a node waits for the others

    @classmethod
    def of(cls, phase: Phase, job: JobConfig, environment: Mapping[str, str]) -> "Rendezvous":
        """Raises UserError for a layout that is not supported yet."""
        if unsupported := job.parallelism.unsupported:
            raise UserError(f"parallelism.{': '.join(unsupported)}")
        if job.parallelism.per_copy > 1 and not PHASES[phase].trains:
            raise UserError(f"parallelism: {phase} computes with whole models; leave it away")
        if PHASES[phase].single_process:
            return cls(ParallelLayout(nodes=1, per_node=1))
        nodes = int(environment.get("PET_NNODES", "1"))
        layout = job.parallelism.over(nodes=nodes, per_node=job.processes_per_node)
        if nodes == 1:
            return cls(layout)
        node = int(environment.get("PET_NODE_RANK", environment.get("RANK", "0")))
        master = environment.get("PET_MASTER_ADDR", environment.get("MASTER_ADDR", ""))
        port = environment.get("PET_MASTER_PORT", environment.get("MASTER_PORT", "29500"))
        return cls(layout, node, master, int(port), job.rendezvous_timeout_seconds)

    @property
    def leads(self) -> bool:
        """Whether rank 0 is on this node."""
        return self.node == 0

    def unmet(self, seconds: float) -> str | None:
        """What it means that no rank has started after so many seconds, where that is that the nodes did not meet."""
        if self.layout.nodes == 1:
            return None
        if seconds >= self.timeout:
            return (
                f"no rank could start within rendezvousTimeoutSeconds ({self.timeout}): the job's other pods found no "
                f"place, or {self.master}:{self.port} cannot be reached (a NetworkPolicy, perhaps)"
            )
        return None if self.leads else f"the pod of rank 0 ({self.master}) was gone before the pods met; it says why"


def command(phase: Phase, rendezvous: Rendezvous) -> list[str]:
    """One rank is started as it is, which saves torchrun's own import of torch (4 s); several by torchrun."""
    layout = rendezvous.layout
    if layout.ranks == 1:
        return [sys.executable, "-m", _WORKER, phase.value]
    if layout.nodes == 1:
        where = ["--standalone"]  # torchrun finds a port of its own
    else:
        where = [f"--node-rank={rendezvous.node}", f"--rdzv-conf=timeout={rendezvous.timeout}"]
        where += [f"--master-addr={rendezvous.master}", f"--master-port={rendezvous.port}"]
    return [
        *(sys.executable, "-m", _TORCHRUN, f"--nnodes={layout.nodes}"),
        *(f"--nproc-per-node={layout.per_node}", *where, "-m", _WORKER, phase.value),
    ]


def environment(
    own: Mapping[str, str], job: JobConfig, phase: Phase, rendezvous: Rendezvous, *, launch: str, outcomes: Path
) -> dict[str, str]:
    """The environment of the ranks: only a phase that reads sources may talk to servers."""
    found = dict(own)
    found[LAUNCH_VARIABLE] = launch
    found[FOLDER_VARIABLE] = str(outcomes)
    found[LAUNCHER_VARIABLE] = str(os.getpid())
    found["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(job.grace_period_seconds)
    if job.threads is not None:
        found["OMP_NUM_THREADS"] = str(job.threads)
    else:
        found.setdefault("OMP_NUM_THREADS", str(max(1, processors() // rendezvous.layout.per_node)))
    if PHASES[phase].reads_sources:
        # transformers takes three times as long to start if it imports torch, which reading sources never needs.
        found |= {"USE_TORCH": "0", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    else:
        found |= offline_variables()
        for name in secret_variables():
            found.pop(name, None)
    # torchrun takes PET_* as defaults of its options; the options are all given.
    found = {name: value for name, value in found.items() if not name.startswith("PET_")}
    if rendezvous.layout.ranks == 1:
        found |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
        found |= {"MASTER_ADDR": rendezvous.master, "MASTER_PORT": str(free_port())}
    return found


class Ranks:
    """The started processes."""

    def __init__(
        self, phase: Phase, rendezvous: Rendezvous, environment: Mapping[str, str], *, fork: bool = False
    ) -> None:
        """Starts them; their output goes where ours goes. `fork`: a single one is a fork of us, if only one thread of
        ours runs (the redactor's would hold its locks in the child for ever). Raises OSError.
        """
        # A group of their own: a Ctrl-C in a terminal is for the launcher, which stops them in order.
        self._process = (
            ForkedRank(phase, environment)
            if fork and rendezvous.layout.ranks == 1 and threading.active_count() == 1
            else subprocess.Popen(  # noqa: S603 (our own interpreter and modules)
                command(phase, rendezvous), env=dict(environment), stdin=subprocess.DEVNULL, process_group=0
            )
        )

    def poll(self) -> int | None:
        """The exit code (negative: signal) of the first process once it has ended."""
        return self._process.poll()

    def terminate(self) -> None:
        """SIGTERM: torchrun passes it on to the ranks, a single rank takes it itself."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL to all of them and everything they started; returns when all are gone."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        # Ranks of torchrun have sessions of their own. Orphans come to us (see `adopt_orphans`).
        while orphans := children():
            for pid in orphans:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        return code
