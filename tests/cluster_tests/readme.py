"""README's "On a cluster" as a script: its commands, and a terminal with what they need in place of the internet."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.cluster import build
from tests.cluster.paths import REPOSITORY

SECTION = re.compile(r"(?ms)^## On a cluster$(.*?)^### Your runs$")
KUSTOMIZATION = re.compile(r"github\.com/kubeflow/training-operator\.git/(\S+)\?ref=(v[0-9.]+)")
MODULE = "github.com/kubeflow/training-operator"


def commands() -> list[str]:
    """The commands of that section, in order; those of several lines as one."""
    found = SECTION.search((REPOSITORY / "README.md").read_text())
    assert found is not None, "README has lost its part about clusters"
    blocks = re.findall(r"(?ms)^```console\n(.*?)^```$", found[1])
    joined = "".join(blocks).replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def programs(folder: Path) -> Path:
    """A folder for PATH with a `docker`."""
    folder.mkdir()
    script = Path(__file__).with_name("docker.py")
    (folder / "docker").write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} {script} {folder} "$@"\n')
    (folder / "docker").chmod(0o755)
    return folder


def without_internet(command: str) -> str:
    """The command, with the training operator's manifests from the Go module that the cluster's own is built of. They
    are judged by the API server and not applied: the cluster has that operator already.
    """
    found = KUSTOMIZATION.search(command)
    if found is None:
        return command
    pins = build.TRAINING_OPERATOR.pins()
    assert f"{MODULE} {found[2]}" in pins, f"README installs {found[2]} of the training operator, the tests another one"
    listed = ["go", "list", "-m", "-f", "{{.Dir}}", MODULE]
    folder = subprocess.run(listed, cwd=build.TRAINING_OPERATOR.folder, capture_output=True, text=True, check=True)
    return command.replace(found[0], shlex.quote(f"{folder.stdout.strip()}/{found[1]}")) + " --dry-run=server"
