"""Prometheus and promtool: the machine's, else Debian's package unpacked into the cache (installed, it would start)."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.packaging.base import CannotBuild, folder

PROGRAMS = ("prometheus", "promtool")


def program(name: str) -> Path:
    """The path of `prometheus` or `promtool`. Raises CannotBuild."""
    found = shutil.which(name)
    return Path(found) if found else _unpacked() / "usr" / "bin" / name


def _unpacked() -> Path:
    target = folder() / "prometheus"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(prefix="prometheus-", dir=folder()) as name:
        draft = Path(name) / "root"
        _call(["apt-get", "download", "--quiet=2", "prometheus"], Path(name))
        (package,) = Path(name).glob("*.deb")
        _call(["dpkg-deb", "--extract", str(package), str(draft)], Path(name))
        draft.rename(target)
    return target


def _call(command: list[str], where: Path) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuild(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")
