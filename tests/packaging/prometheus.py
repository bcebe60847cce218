"""Prometheus and promtool: the machine's, else Debian's package unpacked into the cache (installed, it would start)."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cluster import apt
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
        _download("prometheus", Path(name))
        (package,) = Path(name).glob("*.deb")
        command = ["dpkg-deb", "--extract", str(package), str(draft)]
        subprocess.run(command, cwd=name, capture_output=True, check=True)
        draft.rename(target)
    return target


def _download(package: str, folder: Path) -> None:
    if apt.call("download", package, folder=folder) is None:
        return
    # The package lists of a fresh machine are old or absent.
    apt.call("update")
    if (reason := apt.call("download", package, folder=folder)) is not None:
        raise CannotBuild(f"apt-get could not download {package}: {reason}")
