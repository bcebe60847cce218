"""A base image without a registry: Debian's own packages, put together by debootstrap, once for each set of pins."""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.cluster import apt
from tests.cluster.paths import cache_root, locked

SUITE = "bookworm"
PYTHON = "3.11"
"""The Python of that suite."""

PACKAGES = ("ca-certificates", "python3", "python3-venv")
MIRROR = "http://deb.debian.org/debian"

_LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "var/cache/debconf",
)
_TOOLS = {"buildah": "buildah", "debootstrap": "debootstrap"}


class CannotBuild(Exception):
    """Why images can't be built here."""


def require_tools(say: Callable[[str], None]) -> None:
    """Have buildah and debootstrap, installed by apt-get where they are missing. Raises CannotBuild."""
    if os.geteuid():
        raise CannotBuild("images are built by root here (debootstrap, and buildah in a chroot)")
    missing = [package for program, package in _TOOLS.items() if shutil.which(program) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise CannotBuild(f"{' and '.join(missing)} not found, and there is no apt-get to install them with")
    say(f"installing {', '.join(missing)} (apt-get)")
    if (reason := apt.install(missing)) is not None:
        raise CannotBuild(f"apt-get could not install {', '.join(missing)}: {reason}")


def base_layer(say: Callable[[str], None]) -> Path:
    """The root file system as a tar file in the cache. Raises CannotBuild."""
    pins = json.dumps([SUITE, PACKAGES, _LEFT_OUT, os.uname().machine])
    target = folder() / f"base-{hashlib.sha256(pins.encode()).hexdigest()[:12]}.tar"
    with locked("base-image"):
        if not target.exists():
            say(f"making a base image of Debian {SUITE} (debootstrap)")
            _make(target)
    return target


def folder() -> Path:
    """Where images and what they are made of are kept."""
    path = cache_root().parent / "packaging"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _make(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="base-", dir=target.parent) as name:
        root, draft = Path(name) / "root", Path(name) / "base.tar"
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root), _mirror()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(f"debootstrap failed: {done.stdout.strip()[-500:]}")
        for path in _LEFT_OUT:
            shutil.rmtree(root / path, ignore_errors=True)
        # debootstrap copies the machine's own.
        for path in ("etc/resolv.conf", "etc/hostname"):
            (root / path).unlink(missing_ok=True)
        with tarfile.open(draft, "w") as archive:
            archive.add(root, ".", filter=_plain)
        draft.rename(target)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    # Devices are the runtime's business.
    return None if entry.ischr() or entry.isblk() else entry


def _mirror() -> str:
    """The mirror that this machine's apt uses for Debian, else Debian's own."""
    wanted = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(ORIGIN)", "Created-By: Packages"]
    listed = subprocess.run(wanted, capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        site, release, *origin = line.split()
        if release == SUITE and origin == ["Debian"]:
            return site
    return MIRROR
