"""Where things lie: the cache outside the checkout, and the files of one cluster's state folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from .errors import ClusterError

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = Path(__file__).resolve().parent / "modules"

# Linux refuses socket paths of more than 107 bytes, and containerd's take 23 of them.
_LONGEST_STATE = 84


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/compression-operator/cluster`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base).resolve() / "compression-operator" / "cluster"


@contextmanager
def locked(what: str = "up") -> Iterator[None]:
    """One process at a time for each cache, whichever checkout it comes from."""
    cache_root().mkdir(parents=True, exist_ok=True)
    with (cache_root() / f"{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class State:
    """The state folder of one cluster; removed as a whole by `down`."""

    root: Path

    @classmethod
    def at(cls, given: Path | None) -> "State":
        """`given`, or the default folder in the cache.

        Raises ClusterError where the path is too long for Unix sockets, or hidden by the cluster's own mounts.
        """
        root = (given or cache_root() / "state").resolve()
        if len(os.fsencode(root)) > _LONGEST_STATE:
            raise ClusterError(
                f"The state folder {root} is too long for Unix sockets: "
                f"give one of at most {_LONGEST_STATE} characters with --state."
            )
        if any(root.is_relative_to(hidden) for hidden in ("/run", "/var/run", "/var/log", "/proc", "/sys", "/dev")):
            raise ClusterError(f"The state folder {root} is in a system folder: give another one with --state.")
        return cls(root)

    @property
    def tag(self) -> str:
        """Eight hexadecimal digits that name this cluster's network link and control group."""
        return sha256(os.fsencode(self.root)).hexdigest()[:8]

    @property
    def link(self) -> str:
        """Name of the machine's end of the link into the cluster (at most 15 characters)."""
        return f"co-{self.tag}"

    @property
    def cgroup(self) -> str:
        return f"compression-operator-{self.tag}"

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def supervisor(self) -> Path:
        return self.root / "supervisor.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def containerd_socket(self) -> Path:
        return self.root / "containerd.sock"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"
