"""A real Kubernetes cluster on one machine, for the tests and for trying things out.

    make cluster                 # prints: export KUBECONFIG=... and export PATH=... (kubectl, helm of this cluster)
    eval "$(make -s cluster)"    # the same, and sets them; a second time it says that the cluster is up already
    make cluster-down            # takes it down; nothing is left

It runs etcd, the API server, controller manager, scheduler, the training operator, and a node that runs pods: kubelet,
containerd, kube-proxy, CoreDNS. The programs are built from the pinned Go modules in `modules/` into the cache
(`${XDG_CACHE_HOME:-~/.cache}/compression-operator/cluster/bin`), once for each set of pins; containerd, runc and a few
tools are Debian's, installed if they are missing (as root). Python's standard library is all that this package needs.

**The machine stays as it is.** Everything runs in namespaces of the cluster's own, for mounts, processes and network:
its mounts, bridges, rules of kube-proxy, kernel settings and containers are seen by no other program, and the kernel
takes them all away with the cluster's first process. On the machine itself there are only the state folder, a control
group and one network link (`co-...`) by which the API server, pods and services can be reached from the machine, and
from pods the machine's servers (at `10.213.0.1` if that block is free). Pods reach nothing beyond the machine.

**Where pods can't be run** (no root, no containerd, no namespaces), there still is an API server on a loopback port,
with etcd, controller manager, scheduler and training operator; what was left out, and why, is said.

- `STATE=folder` (`--state`): another cluster beside the default one, in a folder of at most 84 characters.
- `KUBECONFIG`: if it names another cluster, that one is used and nothing is started.
- `KUBEBUILDER_ASSETS`: a folder with `etcd` and `kube-apiserver` to use in place of those that are built.

Logs lie in the state folder's `logs/` (after a failed start, too); `python -m tests.cluster import FILE` imports an
image archive. The modules, from the outside in: `up`, `down`, `preflight`, `build`, `config`, `settings` (files),
`components` (processes as data), `supervisor` (the first process), `namespaces`, `network`, `cgroups`, `images`, `pki`.
"""
