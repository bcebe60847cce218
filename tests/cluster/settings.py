"""The configuration files of the parts. JSON is YAML, so every one of them is written as JSON."""

import base64
import json
from pathlib import Path

from .config import NODE, Config
from .images import PAUSE

# The training operator's own template has two faults here: busybox's nslookup fails if any search domain does, and the
# container has no security context, so a namespace under the restricted profile refuses the worker.
_INIT_CONTAINER = """\
- name: init-pytorch
  image: {{.InitContainerImage}}
  imagePullPolicy: IfNotPresent
  command:
    - sh
    - -c
    - 'for i in $(seq {{.MaxTries}}); do nslookup {{.MasterAddr}} | grep -q ^Name: && exit 0; sleep 0.5; done; exit 1'
  securityContext:
    allowPrivilegeEscalation: false
    capabilities: {drop: [ALL]}
    runAsNonRoot: true
    runAsUser: 65534
    seccompProfile: {type: RuntimeDefault}
"""


def write(config: Config) -> None:
    """Write everything that the units of `components` read."""
    root = config.state.root
    for name in config.tokens:
        _write(config.state.kubeconfig if name == "admin" else root / f"{name}.kubeconfig", _kubeconfig(config, name))
    _write_manifests(config, root / "manifests")
    private_tmp = root / "training-operator"
    certificates = private_tmp / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True)
    for name, source in _OPERATOR_CERTIFICATES.items():
        (certificates / name).write_bytes((config.state.pki / source).read_bytes())
    _write(private_tmp / "kubeconfig", _kubeconfig(config, "training-operator"))
    (private_tmp / "init-container.yaml").write_text(_INIT_CONTAINER)
    if config.block and config.cni:
        _write_node(config, root)


# Name in the training operator's secret -> file of ours.
_OPERATOR_CERTIFICATES = {
    "ca.crt": "ca.crt",
    "ca.key": "ca.key",
    "tls.crt": "server.crt",
    "tls.key": "server.key",
}


def _kubeconfig(config: Config, identity: str) -> object:
    authority = (config.state.pki / "ca.crt").read_bytes()
    cluster = {"server": config.server, "certificate-authority-data": base64.b64encode(authority).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tests", "cluster": cluster}],
        "users": [{"name": identity, "user": {"token": config.tokens[identity]}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": identity}}],
        "current-context": "tests",
    }


def _write_manifests(config: Config, folder: Path) -> None:
    """PyTorchJobs, and what the training operator wants of the API server: given a certificate, it makes none."""
    folder.mkdir()
    if "pytorchjobs.yaml" in config.programs:
        (folder / "pytorchjobs.yaml").symlink_to(config.programs["pytorchjobs.yaml"])
    if "training-operator" not in config.programs:
        return
    authority = base64.b64encode((config.state.pki / "ca.crt").read_bytes()).decode()
    files = {
        name: base64.b64encode((config.state.pki / path).read_bytes()).decode()
        for name, path in _OPERATOR_CERTIFICATES.items()
    }
    webhook = f"https://127.0.0.1:{config.ports['training-operator-webhook']}/validate-kubeflow-org-v1-pytorchjob"
    rule = {"apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"]}
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow"}},
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "training-operator-webhook-cert", "namespace": "kubeflow"},
            "data": files,
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "validator.training-operator.kubeflow.org"},
            "webhooks": [
                {
                    "name": "validator.pytorchjob.training-operator.kubeflow.org",
                    "admissionReviewVersions": ["v1"],
                    "clientConfig": {"url": webhook, "caBundle": authority},
                    "failurePolicy": "Fail",
                    "rules": [rule | {"resources": ["pytorchjobs"]}],
                    "sideEffects": "None",
                }
            ],
        },
    ]
    _write(folder / "objects.json", {"apiVersion": "v1", "kind": "List", "items": objects})


def _write_node(config: Config, root: Path) -> None:
    block = config.block
    assert block is not None
    # Point to point, so that traffic between pods passes the rules of kube-proxy also without br_netfilter.
    pods = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{root}/private/ipam",
            "ranges": [[{"subnet": block.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    (root / "cni").mkdir()
    _write(root / "cni" / "10-pods.conflist", {"cniVersion": "0.4.0", "name": "pods", "plugins": [pods, ports]})
    # The machine may lack CAP_SYS_RESOURCE: without restrict_oom_score_adj runc then dies with "can't get final
    # child's PID from pipe". A profile of AppArmor would be loaded into the kernel and stay there.
    (root / "containerd.toml").write_text(
        f"""\
version = 2
root = "{root}/containerd"
state = "/run/containerd"
[grpc]
  address = "{config.state.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{config.cni}"
    conf_dir = "{root}/cni"
"""
    )
    _write(
        root / "kubelet.json",
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": block.node,
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": f"{config.state.pki}/ca.crt"}},
            "tlsCertFile": f"{config.state.pki}/server.crt",
            "tlsPrivateKeyFile": f"{config.state.pki}/server.key",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{config.state.cgroup}",
            # From 1.35 on the kubelet refuses version 1 of control groups by default, and warns before.
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "containerRuntimeEndpoint": f"unix://{config.state.containerd_socket}",
            "clusterDNS": [block.node],
            "clusterDomain": "cluster.local",
            "resolvConf": "",
            "podLogsDir": f"{root}/private/pod-logs",
            "volumePluginDir": f"{root}/private/volume-plugins",
            # A full disk or a busy machine is no reason to evict the tests' pods.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
        },
    )
    _write(
        root / "kube-proxy.json",
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "bindAddress": block.node,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "clientConnection": {"kubeconfig": f"{root}/proxy.kubeconfig"},
            "mode": "iptables",
            "clusterCIDR": block.pods,
            "hostnameOverride": NODE,
            "oomScoreAdj": 0,
            # Limits of connection tracking belong to the machine.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        },
    )
    # No upstream: every other name does not exist.
    (root / "Corefile").write_text(
        f"""\
cluster.local {{
  bind {block.node}
  kubernetes cluster.local {{
    kubeconfig {root}/coredns.kubeconfig
  }}
  ready 127.0.0.1:8181
  errors
}}
. {{
  bind {block.node}
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""
    )


def _write(path: Path, value: object) -> None:
    path.touch(mode=0o600)
    path.write_text(json.dumps(value, indent=1))
