"""The parts of the cluster as data: what is run, after what, and how one sees that it is ready."""

import http.client
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .config import NODE, Config
from .images import BUSYBOX
from .namespaces import KUBELET_ROOT

Probe = Callable[[], bool]


@dataclass(frozen=True)
class Unit:
    """A service, ready when `ready` says so, or (without `ready`) a task, done when it exits with 0.

    A task that exits with something else is started again until the deadline of the whole.
    """

    name: str
    argv: tuple[str, ...]
    after: tuple[str, ...] = ()
    ready: Probe | None = None
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def is_task(self) -> bool:
        return self.ready is None


def http_ok(address: str, port: int, path: str, authority: Path | None = None) -> Probe:
    """Ready when GET answers 200; over TLS where an authority is given."""

    def probe() -> bool:
        if authority is None:
            connection = http.client.HTTPConnection(address, port, timeout=2)
        else:
            context = ssl.create_default_context(cafile=str(authority))
            connection = http.client.HTTPSConnection(address, port, timeout=2, context=context)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return probe


def units(config: Config) -> list[Unit]:
    """Everything that this cluster runs, in an order in which it could be started."""
    found = [_etcd(config), _apiserver(config)]
    if "kube-controller-manager" in config.programs:
        found += [_controller_manager(config), _service_account(config)]
    if "kube-scheduler" in config.programs:
        found.append(_scheduler(config))
    if "pytorchjobs.yaml" in config.programs:
        found += [_manifests(config), _pytorchjobs(config)]
    if "training-operator" in config.programs:
        found.append(_training_operator(config))
    if config.pods:
        found += _node(config)
    return found


def _etcd(config: Config) -> Unit:
    client = f"http://127.0.0.1:{config.ports['etcd']}"
    peer = f"http://127.0.0.1:{config.ports['etcd-peer']}"
    return Unit(
        "etcd",
        (
            config.programs["etcd"],
            f"--data-dir={config.root}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ),
        ready=http_ok("127.0.0.1", config.ports["etcd"], "/health"),
    )


def _apiserver(config: Config) -> Unit:
    pki = config.state.pki
    if config.block:
        where = (
            f"--advertise-address={config.block.node}",
            f"--service-cluster-ip-range={config.block.services}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key",
        )
    else:
        # Nothing may be published on a loopback address, so nothing is.
        where = (
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.0.0.0/24",
        )
    return Unit(
        "kube-apiserver",
        (
            config.programs["kube-apiserver"],
            *where,
            f"--secure-port={config.ports['apiserver']}",
            f"--etcd-servers=http://127.0.0.1:{config.ports['etcd']}",
            f"--tls-cert-file={pki}/server.crt",
            f"--tls-private-key-file={pki}/server.key",
            f"--service-account-key-file={pki}/service-accounts.key",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--token-auth-file={pki}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            # The second one as on OpenShift: who owns what by a reference needs the rights for it.
            "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
            "--allow-privileged=true",
        ),
        after=("etcd",),
        ready=http_ok(config.address, config.ports["apiserver"], "/readyz", pki / "ca.crt"),
    )


def _controller_manager(config: Config) -> Unit:
    pki = config.state.pki
    port = config.ports["controller-manager"]
    return Unit(
        "kube-controller-manager",
        (
            config.programs["kube-controller-manager"],
            f"--kubeconfig={config.root}/controller-manager.kubeconfig",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={pki}/server.crt",
            f"--tls-private-key-file={pki}/server.key",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            f"--service-account-private-key-file={pki}/service-accounts.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--flex-volume-plugin-dir={config.root}/private/volume-plugins",
        ),
        after=("kube-apiserver",),
        ready=http_ok("127.0.0.1", port, "/healthz", pki / "ca.crt"),
    )


def _service_account(config: Config) -> Unit:
    """Pods are refused until the controller manager has made their namespace's service account."""
    return Unit(
        "service-account",
        (
            config.programs["kubectl"],
            f"--kubeconfig={config.state.kubeconfig}",
            *("wait", "--for=create", "serviceaccount/default", "--timeout=20s"),
        ),
        after=("kube-apiserver",),
    )


def _scheduler(config: Config) -> Unit:
    pki = config.state.pki
    port = config.ports["scheduler"]
    return Unit(
        "kube-scheduler",
        (
            config.programs["kube-scheduler"],
            f"--kubeconfig={config.root}/scheduler.kubeconfig",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={pki}/server.crt",
            f"--tls-private-key-file={pki}/server.key",
            "--leader-elect=false",
        ),
        after=("kube-apiserver",),
        ready=http_ok("127.0.0.1", port, "/healthz", pki / "ca.crt"),
    )


def _manifests(config: Config) -> Unit:
    return Unit(
        "manifests",
        (
            config.programs["kubectl"],
            f"--kubeconfig={config.state.kubeconfig}",
            "apply",
            "--server-side",
            f"--filename={config.root}/manifests",
        ),
        after=("kube-apiserver",),
    )


def _pytorchjobs(config: Config) -> Unit:
    """What was applied is served, and known by discovery, a little later; the training operator ends without it."""
    kubectl = (config.programs["kubectl"], f"--kubeconfig={config.state.kubeconfig}", f"--cache-dir={config.root}/tmp")
    return Unit("pytorchjobs", (*kubectl, "get", "pytorchjobs.v1.kubeflow.org"), after=("manifests",))


def _training_operator(config: Config) -> Unit:
    health = config.ports["training-operator-health"]
    return Unit(
        "training-operator",
        (
            # It has its certificates in /tmp/k8s-webhook-server and no flag for another place: its /tmp is its own.
            *(
                "unshare",
                "--mount",
                "sh",
                "-c",
                'mount --bind "$0" /tmp && exec "$@"',
                f"{config.root}/training-operator",
            ),
            config.programs["training-operator"],
            "--enable-scheme=pytorchjob",
            "--metrics-bind-address=0",
            f"--health-probe-bind-address=127.0.0.1:{health}",
            f"--webhook-server-port={config.ports['training-operator-webhook']}",
            "--controller-threads=4",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            f"--pytorch-init-container-image={BUSYBOX}",
            "--pytorch-init-container-template-file=/tmp/init-container.yaml",
            # Half a second each: a busy machine may take minutes to start the master for which workers wait.
            "--pytorch-init-container-max-tries=1200",
        ),
        after=("pytorchjobs",),
        ready=http_ok("127.0.0.1", health, "/readyz"),
        environment=(("KUBECONFIG", "/tmp/kubeconfig"), ("TMPDIR", "/tmp")),
    )


def _node(config: Config) -> list[Unit]:
    root = config.root
    kubectl = (config.programs["kubectl"], f"--kubeconfig={config.state.kubeconfig}")
    archives = tuple(str(path) for path in sorted((config.state.root / "images").glob("*.tar")))
    import_all = 'for archive; do ctr --address "$0" --namespace k8s.io images import "$archive" || exit 1; done'
    return [
        Unit(
            "containerd",
            ("containerd", f"--config={root}/containerd.toml"),
            ready=lambda: config.state.containerd_socket.is_socket(),
        ),
        Unit(
            "images",
            ("sh", "-c", import_all, str(config.state.containerd_socket), *archives),
            after=("containerd",),
        ),
        Unit(
            "kubelet",
            (
                config.programs["kubelet"],
                f"--config={root}/kubelet.json",
                f"--kubeconfig={root}/kubelet.kubeconfig",
                f"--root-dir={KUBELET_ROOT}",
                f"--cert-dir={KUBELET_ROOT}/pki",
                f"--hostname-override={NODE}",
                f"--node-ip={config.address}",
            ),
            after=("kube-apiserver", "images"),
            ready=http_ok("127.0.0.1", 10248, "/healthz"),
        ),
        Unit(
            "kube-proxy",
            (config.programs["kube-proxy"], f"--config={root}/kube-proxy.json"),
            # Where the node has no address within 30 s of its start, it ends as soon as the node gets one.
            after=("node-ready",),
            ready=http_ok("127.0.0.1", 10256, "/livez"),
        ),
        Unit(
            "coredns",
            (config.programs["coredns"], "-conf", f"{root}/Corefile"),
            after=("kube-apiserver",),
            ready=http_ok("127.0.0.1", 8181, "/ready"),
        ),
        Unit(
            "node-ready",
            (*kubectl, "wait", "--for=condition=Ready", f"node/{NODE}", "--timeout=5s"),
            after=("kubelet",),
        ),
    ]
