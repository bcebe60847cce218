"""`make cluster` touches nothing that it did not make, and `make cluster-down` leaves nothing of it."""

import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.cluster.down import down
from tests.cluster.errors import ClusterError
from tests.cluster.paths import State
from tests.cluster.up import find, up
from tests.support.waiting import until

pytestmark = pytest.mark.own_cluster

# What a cluster might change of the machine.
SETTINGS = [
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/conf/all/forwarding",
    "/proc/sys/net/ipv6/conf/all/forwarding",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
]


def asked(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def control_groups() -> Iterator[Path]:
    """All of them, however quickly others come and go meanwhile."""
    for folder, _, _ in os.walk("/sys/fs/cgroup"):
        yield Path(folder)


def machine(settings: Iterable[str] = SETTINGS) -> dict[str, object]:
    """Everything that a cluster could leave on it, but for what other clusters have."""
    ours = re.compile(r"co-[0-9a-f]{8}|compression-operator-[0-9a-f]{8}")
    rules = [re.sub(r"\[\d+:\d+\]", "", line) for line in asked("iptables-save") if not line.startswith("#")]
    return {
        "settings": {name: Path(name).read_text() for name in settings if os.access(name, os.R_OK)},
        "links": sorted(name for _, name in socket.if_nameindex() if not ours.match(name)),
        "rules": rules,
        "mounts": sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()),
        "groups": sorted(
            str(path) for path in control_groups() if len(path.parts) in (5, 6) and not ours.fullmatch(path.name)
        ),
    }


def traces(state: State) -> list[str]:
    """What there is on this machine of the cluster in this state folder."""
    found = [str(state.root)] if state.root.exists() else []
    found += [name for _, name in socket.if_nameindex() if name == state.link]
    found += [str(path) for path in control_groups() if path.name == state.cgroup]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [words] if str(state.root) in words else []
    return found


@pytest.fixture
def own() -> State:
    """A state folder beside those of other clusters."""
    return State.at(Path(tempfile.mkdtemp(prefix="co-itself-")))


def test_it_leaves_nothing_behind(own: State) -> None:
    # A setting that comes with a module of the kernel, loaded for whoever asks first, is nobody's change.
    settings = [name for name in SETTINGS if os.access(name, os.R_OK)]
    before = machine(settings)
    kept = ("settings", "rules", "mounts")
    cluster = up(own, print)
    try:
        assert len(traces(own)) > 3  # else the next assertions see nothing
        assert find(own) is not None
        if cluster.pods:
            assert own.link in traces(own)
        during: dict[str, object] = {}

        def as_before() -> bool:
            now = machine(settings)
            during.update({key: now[key] for key in kept})
            return during == {key: before[key] for key in kept}

        with suppress(TimeoutError):  # what others have for a moment goes; what the cluster brought would stay
            until(as_before, "the machine to be as it was, but for what is the cluster's", seconds=30)
        assert during == {key: before[key] for key in kept}
    finally:
        down(own, print)
    assert traces(own) == []
    with suppress(TimeoutError):  # what others have for a moment goes; what the cluster left would stay
        until(lambda: machine(settings) == before, "the machine to be as it was", seconds=30)
    assert machine(settings) == before


def test_a_folder_that_is_no_clusters_is_not_removed(own: State) -> None:
    (own.root / "thesis.txt").write_text("years of work")
    with pytest.raises(ClusterError, match="holds no cluster"):
        down(own, print)
    with pytest.raises(ClusterError, match="holds no cluster"):
        up(own, print)
    assert (own.root / "thesis.txt").exists()
