"""Builds the cluster's programs from the pinned Go modules in `modules/`, once for each set of pins.

Each module's programs lie in the cache under a hash of its pins and of how they are built, so a fresh clone finds
them. Cold, all of it takes ten minutes on one core (Go 1.26), more than half of them for Kubernetes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from .errors import ClusterError
from .paths import MODULES, cache_root, locked

_FLAGS = ("-trimpath", "-buildvcs=false")


@dataclass(frozen=True)
class Module:
    """One Go module: programs (name to package), linker variables from its pins, and files copied out of it."""

    name: str
    programs: Mapping[str, str]
    variables: Callable[[str], Mapping[str, str]] = lambda _: {}
    assets: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name -> (Go module, path inside it)

    @property
    def folder(self) -> Path:
        return MODULES / self.name

    def pins(self) -> str:
        return (self.folder / "go.mod").read_text()

    def linker_flags(self) -> str:
        return " ".join(["-s -w", *(f"-X {name}={value}" for name, value in self.variables(self.pins()).items())])

    def key(self) -> str:
        """Twelve hexadecimal digits over the pins, the sources and the flags of this module."""
        digest = sha256()
        for path in sorted(self.folder.iterdir()):
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
        how = [self.linker_flags(), dict(self.programs), dict(self.assets), _FLAGS, _platform()]
        digest.update(json.dumps(how, sort_keys=True).encode())
        return digest.hexdigest()[:12]

    def built(self) -> Path:
        """Folder of the programs in the cache; it exists only when they are all there."""
        return cache_root() / "bin" / f"{self.name}-{self.key()}"


def _platform() -> str:
    return f"{sys.platform}-{os.uname().machine}"


def _version(pins: str, module: str) -> str:
    match = re.search(rf"^(?:require)?\s*{re.escape(module)} (v\S+)", pins, re.MULTILINE)
    if match is None:
        raise ClusterError(f"No version of {module} is pinned: run `go get {module}@VERSION` in its module.")
    return match[1]


def _kubernetes_variables(pins: str) -> Mapping[str, str]:
    version = _version(pins, "k8s.io/kubernetes")
    major, minor = version.removeprefix("v").split(".")[:2]
    prefix = "k8s.io/component-base/version"
    return {f"{prefix}.gitVersion": version, f"{prefix}.gitMajor": major, f"{prefix}.gitMinor": minor}


def _helm_variables(pins: str) -> Mapping[str, str]:
    # As Helm's own Makefile does: the Kubernetes version that `helm lint` and `helm template` assume.
    minor = _version(pins, "k8s.io/client-go").split(".")[1]
    helm = "helm.sh/helm/v3"
    versions: dict[str, str] = {f"{helm}/internal/version.version": _version(pins, helm)}
    for package in ("pkg/lint/rules", "pkg/chartutil"):
        versions |= {f"{helm}/{package}.k8sVersionMajor": "1", f"{helm}/{package}.k8sVersionMinor": minor}
    return versions


KUBERNETES = Module(
    "kubernetes",
    {
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    },
    variables=_kubernetes_variables,
)
ETCD = Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"})
TRAINING_OPERATOR = Module(
    "training-operator",
    {"training-operator": "github.com/kubeflow/training-operator/cmd/training-operator.v1"},
    assets={
        "pytorchjobs.yaml": (
            "github.com/kubeflow/training-operator",
            "manifests/base/crds/kubeflow.org_pytorchjobs.yaml",
        )
    },
)
COREDNS = Module("coredns", {"coredns": "github.com/coredns/coredns"})
HELM = Module("helm", {"helm": "helm.sh/helm/v3/cmd/helm"}, variables=_helm_variables)
PAUSE = Module("pause", {"pause": "."})
CRD_RULES = Module("crd-rules", {"crd-rules": "."})
"""Judges the CRD as API servers of other minors would; no part of the cluster."""
EVERYTHING = (PAUSE, ETCD, KUBERNETES, TRAINING_OPERATOR, COREDNS, HELM)


def missing(modules: tuple[Module, ...] = EVERYTHING) -> list[Module]:
    """The modules whose programs are not in the cache."""
    return [module for module in modules if not module.built().is_dir()]


def build(modules: tuple[Module, ...], say: Callable[[str], None]) -> None:
    """Build what is missing, one program at a time (linking takes most of a GiB each).

    Raises ClusterError where there is no Go, or where a build fails (with the last lines of its output).
    """
    if not missing(modules):
        return
    with locked("build"):
        for module in missing(modules):
            _build(module, say)


def _build(module: Module, say: Callable[[str], None]) -> None:
    go = shutil.which("go")
    if go is None:
        raise ClusterError(f"Go is needed to build {', '.join(module.programs)}: install it (1.26 or later).")
    target = module.built()
    target.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
    with tempfile.TemporaryDirectory(prefix=f"{module.name}-", dir=target.parent) as draft_name:
        draft = Path(draft_name) / "programs"
        draft.mkdir()
        for program, package in module.programs.items():
            started = time.monotonic()
            say(f"building {program} ...")
            flags = [*_FLAGS, f"-ldflags={module.linker_flags()}"]
            _go([go, "build", *flags, "-o", str(draft / program), package], module.folder, environment)
            say(f"built {program} in {time.monotonic() - started:.0f} s")
        for name, (origin, path) in module.assets.items():
            folder = _go([go, "list", "-m", "-f", "{{.Dir}}", origin], module.folder, environment).strip()
            shutil.copyfile(Path(folder) / path, draft / name)
        draft.rename(target)


def _go(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-20:])
        raise ClusterError(f"`{' '.join(command)}` failed in {folder}:\n{tail}")
    return done.stdout
