"""What this machine can do, found out before anything is started."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from . import apt, cgroups, namespaces
from .errors import ClusterError

# Program (or file) -> the Debian package that has it.
_PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "busybox": "busybox-static",
}
_CNI_PACKAGE = "containernetworking-plugins"
_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_CNI_PLUGINS = ("ptp", "host-local", "portmap", "loopback")


def cni_folder() -> Path | None:
    return next((f for f in _CNI_FOLDERS if all((f / plugin).exists() for plugin in _CNI_PLUGINS)), None)


def install(say: Callable[[str], None]) -> None:
    """As root, install the Debian packages that are missing; a failure shows up in `faults`."""
    packages = sorted(set(_missing().values()))
    if not packages or os.geteuid() or shutil.which("apt-get") is None:
        return
    say(f"installing {', '.join(packages)} (apt-get)")
    if (reason := apt.install(packages)) is not None:
        say(f"apt-get could not install them: {reason}")


def _missing() -> dict[str, str]:
    missing = {program: package for program, package in _PACKAGES.items() if shutil.which(program) is None}
    if cni_folder() is None:
        missing["CNI plugins"] = _CNI_PACKAGE
    return missing


def faults() -> list[str]:
    """Why pods can't run here; empty where they can."""
    if not sys.platform.startswith("linux"):
        return ["this is not Linux"]
    found: list[str] = []
    if os.geteuid():
        found.append("not root")
    elif reason := namespaces.permitted(["mount", "pid", "net"]):
        found.append(f"no namespaces: {reason}")
    if missing := _missing():
        packages = " ".join(sorted(set(missing.values())))
        found.append(f"{', '.join(missing)} not found (apt-get install {packages})")
    if reason := cgroups.fault():
        found.append(reason)
    return found


def require_openssl() -> None:
    """Raises ClusterError without OpenSSL 3."""
    if shutil.which("openssl") is None:
        raise ClusterError("openssl is needed for the cluster's certificates: install OpenSSL 3.")
