"""The cluster's own view of the machine: mounts, process ids and network, gone with its last process.

Everything that Kubernetes likes to leave on a machine (mounts of pods, network interfaces, rules of kube-proxy,
`/run/containerd`, `/var/log/containers`, `/var/lib/cni`, kernel settings) goes into namespaces of the cluster's own.
"""

import ctypes
import os
from pathlib import Path

# linux/sched.h and sys/mount.h
FLAGS = {"mount": 0x00020000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
_MS_BIND, _MS_REC, _MS_SLAVE, _MS_SHARED = 0x1000, 0x4000, 1 << 19, 1 << 20

KUBELET_ROOT = Path("/var/lib/kubelet")
# What the kubelet would otherwise write into the machine's kernel settings.
_KERNEL_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}


def unshare(kinds: list[str]) -> None:
    """Leave the named namespaces; a new process id namespace takes effect for the next child.

    Where "user" is among them, this user becomes root inside. Raises OSError where the kernel says no.
    """
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(sum(FLAGS[kind] for kind in kinds)):
        _raise("unshare " + ",".join(kinds))
    if "user" in kinds:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if "mount" in kinds:
        # Mounts of the machine still appear here, ours never there.
        _mount(None, "/", None, _MS_REC | _MS_SLAVE)


def permitted(kinds: list[str]) -> str | None:
    """None, or why these namespaces can't be had (tried in a child process, which ends at once)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            unshare(kinds)
        except OSError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        reason = answer.read()
    os.waitpid(child, 0)
    return reason or None


def settle(private: Path) -> None:
    """In new mount, process and network namespaces (as process 1): hide what pods' programs would leave behind.

    `private` is a folder for the hidden files. Folders below `/var/lib` stay the machine's own, so volumes there work.
    """
    _mount(None, "/", None, _MS_REC | _MS_SHARED)
    _mount("proc", "/proc", "proc", 0)
    for path in ("/run", "/var/log"):
        _mount("tmpfs", path, "tmpfs", 0, "mode=0755")
    _private_entries(Path("/var/lib"), private / "var-lib")
    # Short paths for the kubelet's sockets, on the disk of the state folder.
    (private / "kubelet").mkdir()
    KUBELET_ROOT.mkdir(exist_ok=True)
    _mount(str(private / "kubelet"), str(KUBELET_ROOT), None, _MS_BIND)
    for name, value in _KERNEL_SETTINGS.items():
        setting = Path("/proc/sys") / name
        if setting.exists():
            stand_in = private / "settings" / name
            stand_in.parent.mkdir(parents=True, exist_ok=True)
            stand_in.write_text(f"{value}\n")
            _mount(str(stand_in), str(setting), None, _MS_BIND)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _private_entries(folder: Path, aside: Path) -> None:
    """Make new entries of `folder` private while those that exist stay what they are."""
    aside.mkdir(parents=True)
    _mount(str(folder), str(aside), None, _MS_BIND | _MS_REC)
    _mount("tmpfs", str(folder), "tmpfs", 0, "mode=0755")
    for entry in aside.iterdir():
        place = folder / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.is_dir():
            place.mkdir()
            _mount(str(entry), str(place), None, _MS_BIND | _MS_REC)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    if libc.mount(encoded(source), encoded(target), encoded(kind), ctypes.c_ulong(flags), encoded(options)):
        _raise(f"mount {source or ''} on {target}")


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{os.strerror(number)} ({what})")
