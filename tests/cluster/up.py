"""Brings a cluster up: builds or finds the programs, decides what this machine can run, and waits until it runs."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from . import build, cgroups, images, namespaces, network, pki, preflight, settings
from .config import NODE, PORTS, Config
from .down import release, remove
from .errors import ClusterError
from .paths import REPOSITORY, State, locked
from .processes import Identity

# Loopback ports are only needed where the cluster has no network of its own.
_LOOPBACK_OFFSET = 10000
_API_PROGRAMS = ("kube-controller-manager", "kube-scheduler", "training-operator")
_NODE_PROGRAMS = ("kubelet", "kube-proxy", "coredns")


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up. `bin` has kubectl and helm; with `address` it is None if KUBECONFIG gave the cluster."""

    kubeconfig: Path
    bin: Path | None
    address: str | None
    pods: bool
    left_out: tuple[str, ...]
    already: bool


def up(state: State, say: Callable[[str], None], *, honour_kubeconfig: bool = False) -> Cluster:
    """Bring the cluster of this state folder up, or find that it is.

    Where it shall be honoured, an existing KUBECONFIG of somebody else's cluster is used as it is: nothing is started.
    Raises ClusterError with the reason, and with the end of the log where a part failed.
    """
    given = os.environ.get("KUBECONFIG") if honour_kubeconfig else None
    if given and Path(given).resolve() != state.kubeconfig:
        return _given(Path(given), say)
    with locked():
        running = find(state)
        if running is not None:
            return running
        if state.root.exists():
            remove(state)
        return _start(state, say)


def up_bare(state: State, say: Callable[[str], None]) -> Cluster:
    """Bring up etcd and the API server alone, which know of PyTorchJobs: nobody else acts on what is written there.

    For measurements and for tests that play the other parts themselves. Raises ClusterError.
    """
    with locked():
        if state.root.exists():
            remove(state)
        preflight.require_openssl()
        wanted = ("etcd", "kube-apiserver", "kubectl", "pytorchjobs.yaml")
        programs = {name: path for name, path in _programs(False, say).items() if name in wanted}
        config = _decide(state, ["they were not asked for"], programs, say)
        return _bring_up(replace(config, namespaces=[], left_out=["everything but etcd and the API server"]))


def find(state: State) -> Cluster | None:
    """The cluster of this state folder if it is up. Raises ClusterError where one of its parts has ended."""
    config, supervisor = Config.read(state), Identity.read(state.supervisor)
    if config is None or supervisor is None or not supervisor.alive():
        return None
    status = json.loads(state.status.read_text())
    if status["phase"] != "ready":
        return None
    for name, part in status["parts"].items():
        if part["exitCode"] is not None and not part["task"]:
            raise ClusterError(
                f"{name} has ended with exit code {part['exitCode']} since the cluster came up "
                f"(see {state.log(name)}): run `make cluster-down` and start again."
            )
    return _ours(config, already=True)


def _ours(config: Config, *, already: bool) -> Cluster:
    state = config.state
    return Cluster(state.kubeconfig, state.bin, config.address, config.pods, tuple(config.left_out), already)


def _given(kubeconfig: Path, say: Callable[[str], None]) -> Cluster:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        build.build((build.KUBERNETES,), say)
        kubectl = str(build.KUBERNETES.built() / "kubectl")

    def ask(*arguments: str) -> "subprocess.CompletedProcess[str]":
        # KUBECONFIG may be a list of files: kubectl reads it from the environment.
        command = [kubectl, "--request-timeout=10s", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    ready = ask("get", "--raw", "/readyz")
    if ready.returncode:
        raise ClusterError(
            f"KUBECONFIG names {kubeconfig}, whose cluster does not answer ({ready.stderr.strip()}): "
            "unset it to start a cluster here."
        )
    left_out: list[str] = []
    if ask("get", "crd", "pytorchjobs.kubeflow.org").returncode:
        left_out.append("the training operator: the cluster that KUBECONFIG names has no PyTorchJobs")
    pods = bool(ask("get", "nodes", "--output=name").stdout.strip())
    return Cluster(kubeconfig, None, None, pods, tuple(left_out), already=True)


def _start(state: State, say: Callable[[str], None]) -> Cluster:
    begun = time.monotonic()
    preflight.require_openssl()
    preflight.install(say)
    faults = preflight.faults()
    cluster = _bring_up(_decide(state, faults, _programs(not faults, say), say))
    say(f"The cluster came up in {time.monotonic() - begun:.1f} s.")
    return cluster


def _bring_up(config: Config) -> Cluster:
    state = config.state
    state.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    # From here on `down` finds what there is to remove.
    config.write()
    try:
        _prepare(config)
        _supervise(config)
    except BaseException:
        # The folder stays, for its logs; the next `up` or `down` removes it.
        release(state)
        raise
    return _ours(config, already=False)


def _programs(pods: bool, say: Callable[[str], None]) -> dict[str, str]:
    """Path by name of every program; etcd and the API server from KUBEBUILDER_ASSETS where that is set."""
    modules = build.EVERYTHING if pods else (build.ETCD, build.KUBERNETES, build.TRAINING_OPERATOR, build.HELM)
    given: dict[str, str] = {}
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        given = {name: str(Path(assets) / name) for name in ("etcd", "kube-apiserver", "kubectl")}
        given = {name: path for name, path in given.items() if os.access(path, os.X_OK)}
        if lacking := {"etcd", "kube-apiserver"} - set(given):
            raise ClusterError(f"KUBEBUILDER_ASSETS names {assets}, which has no {' and no '.join(sorted(lacking))}.")
        modules = tuple(module for module in modules if module is not build.ETCD)
        if shutil.which("go") is None and build.missing(modules):
            modules = ()
    build.build(modules, say)
    built = {name: str(module.built() / name) for module in modules for name in (*module.programs, *module.assets)}
    return built | given


def _decide(state: State, faults: list[str], programs: dict[str, str], say: Callable[[str], None]) -> Config:
    """What this cluster will be, on this machine, with these programs."""
    left_out = [f"{name}: it can't be built without Go" for name in _API_PROGRAMS if name not in programs]
    if not faults and (lacking := [name for name in _NODE_PROGRAMS if name not in programs]):
        faults = [f"{', '.join(lacking)} can't be built without Go"]
    if faults:
        left_out.append(f"pods (kubelet, containerd, kube-proxy, CoreDNS): {'; '.join(faults)}")
        kinds = ["mount", "pid"] if os.geteuid() == 0 else ["user", "mount", "pid"]
        if reason := namespaces.permitted(kinds):
            kinds = []
            programs.pop("training-operator", None)
            left_out.append(
                f"the training operator: it needs a /tmp of its own, and there are no namespaces ({reason})"
            )
    else:
        kinds = ["mount", "pid", "net"]
    ports, told = dict(PORTS), []
    if faults:
        ports, told = network.free_ports({name: port + _LOOPBACK_OFFSET for name, port in PORTS.items()})
    for sentence in told:
        say(sentence)
    folder = preflight.cni_folder()
    return Config(
        root=str(state.root),
        pods=not faults,
        namespaces=kinds,
        network=None if faults else network.choose_block().network,
        ports=ports,
        left_out=left_out,
        programs=programs,
        cni=str(folder) if folder else None,
    )


def _prepare(config: Config) -> None:
    """Fill the state folder, and make the control group of the pods."""
    state = config.state
    for folder in (state.bin, state.logs, state.root / "tmp"):
        folder.mkdir()
    for name, path in config.programs.items():
        if os.access(path, os.X_OK):
            (state.bin / name).symlink_to(path)
    addresses = {"127.0.0.1", config.address, *([config.block.kubernetes_service] if config.block else [])}
    config.tokens.update(pki.create(state.pki, node=NODE, addresses=sorted(addresses)))
    if config.pods:
        config.controllers.extend(cgroups.create(state.cgroup))
        images.write_standard_archives(state.root / "images", pause=build.PAUSE.built() / "pause")
    config.write()
    settings.write(config)


def _supervise(config: Config) -> None:
    """Start the first process, give it its network, and wait until everything is ready."""
    state = config.state
    with state.log("supervisor").open("wb") as log:
        # It moves into its namespaces by a child, and ends.
        started = subprocess.run(
            [sys.executable, "-m", "tests.cluster.supervisor", str(state.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            start_new_session=True,
            check=False,
        )
    supervisor = Identity.read(state.supervisor)
    if started.returncode or supervisor is None:
        raise ClusterError(f"The cluster did not start:\n{state.log('supervisor').read_text()}")
    if config.block:
        network.connect(state.link, config.block, supervisor.pid)
    while True:
        alive = supervisor.alive()
        status = json.loads(state.status.read_text()) if state.status.exists() else {"phase": "starting"}
        if status["phase"] == "ready":
            return
        if status["phase"] == "failed":
            raise ClusterError(f"The cluster did not come up: {status['message']}")
        if not alive:
            raise ClusterError(f"The cluster's first process ended:\n{state.log('supervisor').read_text()}")
        time.sleep(0.05)
