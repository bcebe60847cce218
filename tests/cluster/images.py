"""Container images without a registry: a tiny maker of one-layer images, and their import into the cluster.

The cluster has three from the start, none of which names a registry that exists:

- `localhost/pause:1`    the sandbox of every pod
- `localhost/busybox:1`  Debian's static busybox with all its commands
- `localhost/host:1`     an empty root: mount the node's `/usr` (and a virtual environment) into it, read-only
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import ClusterError
from .paths import State

PAUSE = "localhost/pause:1"
BUSYBOX = "localhost/busybox:1"
HOST = "localhost/host:1"

_HOST_FOLDERS = (
    "data",
    "dev",
    "etc",
    "home",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "srv",
    "store",
    "sys",
    "tmp",
    "usr",
    "var",
    "venv",
    "work",
)
_USERS = (
    "root:x:0:0:root:/root:/bin/sh\ncompression:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
)
_GROUPS = "root:x:0:\ncompression:x:1000:\nnogroup:x:65534:\n"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_archive(target: Path, name: str, command: Sequence[str], fill: Callable[[tarfile.TarFile], None]) -> None:
    """Write a docker-archive with one layer, which `fill` adds to; the same input gives the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        fill(layer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    machine = os.uname().machine
    config = json.dumps(
        {
            "architecture": _ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "config": {"Cmd": list(command), "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    layer_name = f"{digest}/layer.tar"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}]).encode()
    with tarfile.open(target, "w") as archive:
        for member, data in ((config_name, config), (layer_name, content), ("manifest.json", manifest)):
            add_file(archive, member, data)


def add_file(layer: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    layer.addfile(entry, io.BytesIO(data))


def add_folder(layer: tarfile.TarFile, name: str, mode: int = 0o755) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    layer.addfile(entry)


def add_link(layer: tarfile.TarFile, name: str, to: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, to
    layer.addfile(entry)


def write_standard_archives(folder: Path, *, pause: Path) -> list[Path]:
    """Write the three images that every cluster has. Raises ClusterError where the machine's busybox is not static."""
    folder.mkdir(exist_ok=True)
    found = shutil.which("busybox")
    if found is None or b"/ld-linux" in Path(found).read_bytes()[:4096]:
        raise ClusterError("The pods' busybox must be a static one: apt-get install busybox-static.")
    busybox = Path(found)
    commands = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()

    def fill_pause(layer: tarfile.TarFile) -> None:
        add_file(layer, "pause", pause.read_bytes(), 0o755)

    def fill_busybox(layer: tarfile.TarFile) -> None:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o700), ("home", 0o777)):
            add_folder(layer, name, mode)
        add_file(layer, "etc/passwd", _USERS.encode())
        add_file(layer, "etc/group", _GROUPS.encode())
        add_file(layer, "bin/busybox", busybox.read_bytes(), 0o755)
        for command in commands:
            if command != "busybox":
                add_link(layer, f"bin/{command}", "busybox")

    def fill_host(layer: tarfile.TarFile) -> None:
        for name in _HOST_FOLDERS:
            add_folder(layer, name, 0o1777 if name == "tmp" else 0o755)
        add_file(layer, "etc/passwd", _USERS.encode())
        add_file(layer, "etc/group", _GROUPS.encode())
        for name in ("bin", "sbin", "lib", "lib64"):
            place = Path("/") / name
            if place.is_symlink():
                add_link(layer, name, str(place.readlink()))
            elif place.is_dir():
                add_folder(layer, name)

    archives: list[Path] = []
    for name, command, fill in (
        (PAUSE, ["/pause"], fill_pause),
        (BUSYBOX, ["/bin/sh"], fill_busybox),
        (HOST, ["/usr/bin/python3"], fill_host),
    ):
        archives.append(folder / f"{name.partition('/')[2].partition(':')[0]}.tar")
        write_archive(archives[-1], name, command, fill)
    return archives


def import_archive(state: State, archive: Path) -> list[str]:
    """Import a docker-archive or OCI archive into a running cluster; returns the names of its images.

    Raises ClusterError where the cluster runs no pods, or the archive can't be read.
    """
    ctr = shutil.which("ctr")
    if ctr is None or not state.containerd_socket.exists():
        raise ClusterError(f"The cluster in {state.root} runs no pods: images can't be imported.")
    command = [ctr, "--address", str(state.containerd_socket), "--namespace", "k8s.io", "images", "import"]
    done = subprocess.run([*command, str(archive)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{archive} can't be imported: {done.stderr.strip()}")
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("unpacking ")]
