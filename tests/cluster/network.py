"""Addresses and ports: a private block and a link of our own where pods run, free loopback ports where they don't."""

import ipaddress
import json
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ClusterError

_UPLINK = "uplink"
_LINK_SECONDS = 60.0
# The private blocks that are tried, in order: seldom used ones.
_BLOCKS = tuple(ipaddress.ip_network(f"10.{second}.0.0/16") for second in (*range(213, 233), *range(150, 170)))


@dataclass(frozen=True)
class Block:
    """A /16 of private addresses, divided: the link, the pods, the services."""

    network: str

    def _part(self, offset: int, prefix: int) -> ipaddress.IPv4Network:
        start = ipaddress.IPv4Network(self.network).network_address + offset
        return ipaddress.IPv4Network((int(start), prefix))

    @property
    def machine(self) -> str:
        """The machine's end of the link: pods reach servers of the machine here."""
        return str(self._part(0, 30)[1])

    @property
    def node(self) -> str:
        """The cluster's end: API server, kubelet, CoreDNS."""
        return str(self._part(0, 30)[2])

    @property
    def pods(self) -> str:
        return str(self._part(256, 24))

    @property
    def services(self) -> str:
        return str(self._part(1 << 15, 17))

    @property
    def kubernetes_service(self) -> str:
        return str(self._part(1 << 15, 17)[1])


def choose_block() -> Block:
    """The first block that overlaps none of the machine's addresses and routes. Raises ClusterError if all do."""
    taken: list[ipaddress.IPv4Network] = []
    for line in json.loads(_ip("-json", "-4", "route", "show", "table", "all").stdout or "[]"):
        if line["dst"] != "default":
            taken.append(ipaddress.IPv4Network(line["dst"], strict=False))
    for block in _BLOCKS:
        if not any(block.overlaps(other) for other in taken if other.prefixlen):
            return Block(str(block))
    raise ClusterError(f"Every private address block from {_BLOCKS[0]} to {_BLOCKS[-1]} is in use on this machine.")


def connect(link: str, block: Block, pid: int) -> None:
    """On the machine: a link into the network namespace of process `pid`, and a route to pods and services."""
    _ip("link", "add", link, "type", "veth", "peer", "name", _UPLINK, "netns", str(pid))
    _ip("address", "add", f"{block.machine}/30", "dev", link)
    _ip("link", "set", link, "up")
    _ip("route", "add", block.network, "via", block.node, "dev", link)


def settle(block: Block) -> None:
    """In the cluster: wait for the link and take our address. There is no default route: nothing leaves the machine."""
    deadline = time.monotonic() + _LINK_SECONDS
    while _UPLINK not in {name for _, name in socket.if_nameindex()}:
        if time.monotonic() > deadline:
            raise ClusterError(f"The network link to the machine did not appear within {_LINK_SECONDS:g} s.")
        time.sleep(0.02)
    _ip("link", "set", "lo", "up")
    _ip("address", "add", f"{block.node}/30", "dev", _UPLINK)
    _ip("link", "set", _UPLINK, "up")


def disconnect(link: str) -> None:
    """Wait until the kernel has taken the link away with its namespace; take it away ourselves after 5 s.

    Raises ClusterError where it stays all the same.
    """
    deadline, error = time.monotonic() + 5, None
    while link in {name for _, name in socket.if_nameindex()}:
        if error is not None:
            raise error
        if time.monotonic() > deadline:
            try:
                _ip("link", "delete", link)
            except ClusterError as refused:
                error = refused  # the kernel may have been about to do it, and been quicker
        time.sleep(0.02)


def free_ports(wanted: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
    """For each name the wanted loopback port, or the next free one, and a sentence for each that was taken.

    Raises ClusterError where none of 100 ports is free.
    """
    chosen: dict[str, int] = {}
    told: list[str] = []
    for name, first in wanted.items():
        port = next((p for p in range(first, first + 100) if p not in chosen.values() and _free(p)), None)
        if port is None:
            raise ClusterError(
                f"None of the ports {first} to {first + 99} is free for {name}: stop what listens there."
            )
        if port != first:
            told.append(f"Port {first} ({name}) is taken by another process: using {port}.")
        chosen[name] = port
    return chosen, told


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _ip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`ip {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done
