"""The pipeline without its image of several gigabytes: this machine's Python, torch and sources, mounted into pods.

The cluster's `localhost/host:1` is an empty root. Jobs find in it, read-only and at the paths that they have here:
`/usr`, Python, the virtual environment and `pipeline/`. A pod template's host paths are refused, so each of these comes
by a PersistentVolume and a claim.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cluster.images import HOST
from tests.cluster.paths import REPOSITORY, State

Body = dict[str, Any]

NAME = HOST

FOLDERS = {
    "host-usr": Path("/usr"),
    "host-python": Path(sys.base_prefix),
    "host-environment": Path(sys.prefix),
    "host-pipeline": REPOSITORY / "pipeline",
}
"""Claim -> the folder of this machine that it brings into the pods."""

SIZE = {"storage": "1Gi"}


def mounted() -> dict[str, Path]:
    """What pods need a mount for: a Python in /usr comes with /usr."""
    found: dict[str, Path] = {}
    for claim, path in FOLDERS.items():
        if not any(path.is_relative_to(other) for other in found.values()):
            found[claim] = path
    return found


def volume(namespace: str, claim: str, folder: Path, mode: str) -> Body:
    """A PersistentVolume of a folder of this machine that waits for one claim, as a provisioner would have made it."""
    spec = {
        "accessModes": [mode],
        "capacity": SIZE,
        "storageClassName": "",
        "claimRef": {"namespace": namespace, "name": claim},
        "hostPath": {"path": str(folder)},
        "persistentVolumeReclaimPolicy": "Retain",
    }
    meta = {"name": f"{namespace}-{claim}"}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": meta, "spec": spec}


def volumes(namespace: str) -> list[Body]:
    """The PersistentVolumes and claims that the pod template names."""
    bodies: list[Body] = []
    for claim, folder in mounted().items():
        spec = {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "resources": {"requests": SIZE}}
        meta = {"name": claim, "namespace": namespace}
        bodies.append(volume(namespace, claim, folder, "ReadOnlyMany"))
        bodies.append({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec})
    return bodies


def pod_template() -> Body:
    """A run's `jobTemplate.podTemplate` in place of an image that has it all; the environment is that image's."""
    environment = {
        "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "USER": "compression",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    container = {
        "name": "pytorch",
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": [{"name": n, "mountPath": str(path), "readOnly": True} for n, path in mounted().items()],
    }
    claims = [{"name": n, "persistentVolumeClaim": {"claimName": n, "readOnly": True}} for n in mounted()]
    return {"spec": {"containers": [container], "volumes": claims}}


def name_image(state: State, image: str, name: str) -> None:
    """Give an image of the cluster another name, e.g. one that would be pulled from a registry."""
    ctr = ["ctr", "--address", str(state.containerd_socket), "--namespace", "k8s.io", "images", "tag", "--force"]
    subprocess.run([*ctr, image, name], check=True, capture_output=True)
