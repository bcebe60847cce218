"""Takes a cluster down: its first process, and then what the kernel did not take along with it."""

import shutil
import signal
from collections.abc import Callable

from . import cgroups, network
from .config import Config
from .errors import ClusterError
from .paths import State, locked
from .processes import Identity

_GRACE_SECONDS = 10.0
_KILLED_SECONDS = 60.0
"""For the kernel to end all that there is, on a machine that has much else to do."""


def down(state: State, say: Callable[[str], None]) -> None:
    """Stop the cluster of this state folder and remove the folder; also after a crash or a restart of the machine.

    Only the process with the recorded id *and* start time is stopped; its namespaces take every other one along.
    Raises ClusterError where the folder is not a cluster's, or something could not be removed.
    """
    with locked():
        say("The cluster is down; nothing of it is left." if remove(state) else "The cluster is down.")


def remove(state: State) -> bool:
    """As `down`, for callers that hold the lock; returns whether there was anything."""
    if Config.read(state) is None:
        if state.root.exists() and any(state.root.iterdir()):
            raise ClusterError(f"{state.root} holds no cluster: nothing was removed.")
        return False
    release(state)
    shutil.rmtree(state.root)
    return True


def release(state: State) -> None:
    """End the cluster's processes and give back what it has of the machine; only the folder stays.

    Raises ClusterError where a process can't be ended, or still is in the control group.
    """
    config = Config.read(state)
    _stop(state)
    if config and config.block:
        network.disconnect(state.link)
    if config and config.pods and (left := cgroups.remove(state.cgroup, config.controllers)):
        raise ClusterError(f"The control group {left[-1]} still holds processes: end them and try again.")


def _stop(state: State) -> None:
    supervisor = Identity.read(state.supervisor)
    if supervisor is None:
        return
    supervisor.signal(signal.SIGTERM)
    if not supervisor.wait_until_gone(_GRACE_SECONDS):
        supervisor.signal(signal.SIGKILL)
        if not supervisor.wait_until_gone(_KILLED_SECONDS):
            raise ClusterError(f"The cluster's first process ({supervisor.pid}) does not end, not even by SIGKILL.")
