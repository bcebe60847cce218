"""A NetworkPolicy for the pods of one step: they speak with each other, and nobody else speaks with them. Pure.

Ranks find each other at a known port and then exchange gradients on ports that the kernel chooses, without a password.
Attempts at a step follow each other, so one policy serves them all. It goes with the run.
"""

import hashlib
from typing import Any

from compression_operator.api.run import API_VERSION, GROUP, KIND, CompressionRun
from compression_operator.core.jobs import Job
from compression_operator.kube.client import Permission, Resource
from compression_pipeline.config import PHASES

from .jobpods import MANAGED_BY, MANAGER, label_value

Json = dict[str, Any]

NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies")
PERMISSION = Permission(NETWORK_POLICIES.group, "networkpolicies", ("create",))
"""What the operator needs beside kinds.PERMISSIONS, in every namespace that it watches, where jobs get policies."""

DNS: Json = {"ports": [{"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")]}
"""OpenShift's listens on 5353, and a policy sees where a Service leads to."""

ANYWHERE: Json = {}


def network_policy(run: CompressionRun, job: Job) -> Json:
    """The policy for the pods of the job's step. Only those that read sources may go out."""
    own = {f"{GROUP}/run": label_value(run.metadata.name), f"{GROUP}/step": label_value(job.step)}
    pods: Json = {"podSelector": {"matchLabels": own}}
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": run.metadata.name, "uid": run.metadata.uid}
    mark = hashlib.sha256(f"{run.metadata.uid}/{job.step}".encode()).hexdigest()[:8]
    return {
        "apiVersion": NETWORK_POLICIES.api_version,
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"{run.metadata.name[:200].rstrip('-.')}-{mark}",
            "namespace": run.metadata.namespace,
            "labels": {MANAGED_BY: MANAGER, **own},
            "ownerReferences": [owner],
        },
        "spec": {
            **pods,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [pods]}],
            "egress": [ANYWHERE] if PHASES[job.phase].reads_sources else [{"to": [pods]}, DNS],
        },
    }
