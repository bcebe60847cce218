"""A control group of the cluster's own, above those of its pods; removed with them."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_CONTROLLERS = {"cpu", "memory", "pids"}
# What the kubelet expects to find in its root group wherever the kernel has it (version 2).
_HANDED_DOWN = {"cpu", "cpuset", "hugetlb", "io", "memory", "pids"}


def hierarchies() -> list[Path]:
    """Mount points of the control group hierarchies that hold pods: one for version 2, else one per controller."""
    return _mounted("cgroup") or _mounted("cgroup2")[:1]


def _mounted(wanted: str) -> list[Path]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [Path(point) for _, point, kind, *_ in map(str.split, lines) if kind == wanted]


def fault() -> str | None:
    """None, or why pods can't be held in control groups here."""
    found = hierarchies()
    if not found:
        return "no control groups are mounted (/sys/fs/cgroup)"
    if read_only := [path for path in found if not os.access(path, os.W_OK)]:
        return f"control groups can't be made in {read_only[0]}"
    if _unified(found):
        names = set((found[0] / "cgroup.controllers").read_text().split())
    else:
        names = {name for path in found for name in path.name.split(",")}
    if lacking := sorted(_CONTROLLERS - names):
        return f"the control group controllers {', '.join(lacking)} are missing"
    return None


def create(name: str) -> list[str]:
    """Make the group `name` in every hierarchy, ready to have children with limits.

    Returns the controllers that had to be handed down from the root for it (version 2): `remove` takes them back.
    """
    found = hierarchies()
    if _unified(found):
        handed_down = _hand_down(found[0])
        (found[0] / name).mkdir(exist_ok=True)
        _hand_down(found[0] / name)
        return handed_down
    for hierarchy in found:
        group = hierarchy / name
        group.mkdir(exist_ok=True)
        # Version 1 starts a cpuset empty, and nothing can run in an empty one.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (hierarchy / setting).exists():
                (group / setting).write_text((hierarchy / setting).read_text())
    return []


def remove(name: str, handed_down: list[str]) -> list[Path]:
    """Remove the group and its children in every hierarchy; returns what still holds a process after half a minute.

    Also in a version 2 hierarchy beside those of version 1: runc keeps a group for each container there.
    """
    deadline = time.monotonic() + 30
    mounted = _mounted("cgroup") + _mounted("cgroup2")
    while left := [path for hierarchy in mounted for path in _bottom_up(hierarchy / name) if not _gone(path)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
    for controller in handed_down:
        # Refused where somebody else has come to use it meanwhile: then it is theirs.
        with suppress(OSError):
            (hierarchies()[0] / "cgroup.subtree_control").write_text(f"-{controller}")
    return []


def _unified(found: list[Path]) -> bool:
    return (found[0] / "cgroup.controllers").exists()


def _hand_down(group: Path) -> list[str]:
    control = group / "cgroup.subtree_control"
    offered = set((group / "cgroup.controllers").read_text().split()) & _HANDED_DOWN
    new = sorted(offered - set(control.read_text().split()))
    for controller in new:
        control.write_text(f"+{controller}")
    return new


def _bottom_up(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for child in folder.iterdir():
            if child.is_dir():
                yield from _bottom_up(child)
        yield folder


def _gone(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
