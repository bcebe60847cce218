"""The chart's ValidatingAdmissionPolicy on a real API server: what a run may not say of its pods is refused at once."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from api import Api, Body, Refused
from operators import Namespace, manifest
from test_crd_on_server import EXAMPLES, VALID
from tests.packaging.helm import only, render
from tests.support.waiting import until

from compression_operator.api.documents import read_documents
from compression_operator.api.templates import template_findings

POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
PROBE: Body = {"podTemplate": {"spec": {"hostPID": True}, "metadata": {"annotations": {"probe": "yes"}}}}

DROPPED: Body = {
    "serviceAccountName": "s3-reader",
    "hostNetwork": True,
    "hostIPC": True,
    "containers": [
        {
            "name": "pytorch",
            "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
            "volumeMounts": [{"name": "nvme", "mountPath": "/scratch"}],
            "env": [{"name": "TMPDIR", "value": "/scratch"}],
        }
    ],
    "volumes": [{"name": "nvme", "hostPath": {"path": "/mnt/disks/ssd0"}}],
}
"""From a public report: all of it vanished without a word."""

UNRESTRICTED_VOLUMES: Body = {
    "containers": [
        {
            "name": "pytorch",
            "volumeMounts": [{"name": "export", "mountPath": "/n"}],
            "livenessProbe": {"httpGet": {"host": "169.254.169.254", "port": 80}},
        }
    ],
    "volumes": [
        {"name": "export", "nfs": {"server": "10.0.0.1", "path": "/exports"}},
        {"name": "g", "gitRepo": {"repository": "https://example.com/x.git"}},
        {"name": "f", "flexVolume": {"driver": "example/x"}},
    ],
}


@contextmanager
def enforced(namespace: Namespace, probe: Body, **values: Any) -> Iterator[Body]:
    """The policy of a release that watches this namespace alone, once the API server goes by it; `probe` is a
    jobTemplate that it refuses. Gives the policy.
    """
    api = namespace.api
    rendered = render(
        {"watchNamespaces": [namespace.name], "crds": {"install": False}, **values}, namespace=namespace.name
    )
    policy = only(rendered, "ValidatingAdmissionPolicy")
    binding = only(rendered, "ValidatingAdmissionPolicyBinding")
    name = policy["metadata"]["name"]
    try:
        api.create(POLICIES, policy)
        api.create(BINDINGS, binding)
        until(lambda: refusal(namespace, probe), "the policy to be in force")
        yield policy
    finally:
        api.delete(f"{BINDINGS}/{name}")
        api.delete(f"{POLICIES}/{name}")


def refusal(namespace: Namespace, job_template: Body) -> str:
    """What the API server says to a run of this jobTemplate; empty where it takes it."""
    body = manifest("asked", jobTemplate=job_template)
    path = namespace.run_path("").removesuffix("/")
    try:
        namespace.api.call("POST", path, body, dryRun="All")
    except Refused as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("spec", [DROPPED, UNRESTRICTED_VOLUMES], ids=["dropped", "volumes"])
def test_it_refuses_with_every_path_and_the_fix(namespace: Namespace, spec: Body) -> None:
    told = list(template_findings({"jobTemplate": {"podTemplate": {"spec": spec}}}))
    assert len(told) >= 4
    with enforced(namespace, PROBE) as policy:
        said = refusal(namespace, {"podTemplate": {"spec": spec}})
        assert policy["metadata"]["name"] in said and said.startswith("422")
        for path, why in told:
            assert f"{path} {why}" in said
        assert refusal(namespace, {}) == ""


def kept(api: Api, path: str) -> Callable[[], Body | None]:
    """The policy, once the controller has looked at its types."""

    def looked() -> Body | None:
        found = api.get(path)
        return found if found and "typeChecking" in found.get("status", {}) else None

    return looked


def test_it_takes_every_example_and_what_it_took_before(namespace: Namespace) -> None:
    """And the API server's own type check finds nothing in it."""
    before = manifest("before", jobTemplate={"podTemplate": {"spec": DROPPED}}, suspend=True)
    path = namespace.run_path("").removesuffix("/")
    namespace.api.create(path, before)
    with enforced(namespace, PROBE) as policy:
        for file in [*VALID, *EXAMPLES]:
            for body in read_documents(file.read_text()):
                if isinstance(body, dict) and body["kind"] == "CompressionRun":
                    asked = {**body, "metadata": {"name": "asked"}}
                    namespace.api.call("POST", path, asked, dryRun="All")
        assert namespace.edit("before", suspend=False)["spec"]["suspend"] is False
        with pytest.raises(Refused, match="hostPID is not allowed"):
            namespace.edit("before", jobTemplate={"podTemplate": {"spec": {**DROPPED, "hostPID": True}}})
        named = f"{POLICIES}/{policy['metadata']['name']}"
        checked = until(kept(namespace.api, named), "the policy's types to be checked")
        assert not checked["status"]["typeChecking"].get("expressionWarnings"), json.dumps(checked["status"])


def test_it_says_what_the_platforms_administrator_says(namespace: Namespace) -> None:
    template = {"podTemplate": {"spec": {"hostNetwork": True}}}
    overwritten = {"podTemplate": {"spec": {"containers": [{"name": "pytorch", "command": ["sh"]}]}}}
    with enforced(namespace, overwritten, jobs={"podTemplate": "Unrestricted"}):
        assert refusal(namespace, template) == ""
    harmless = {"podTemplate": {"metadata": {"labels": {"team": "a"}}}}
    with enforced(namespace, harmless, jobs={"podTemplate": "Forbidden", "allowedImages": ["registry.example/*"]}):
        assert "allows no pod templates" in refusal(namespace, harmless)
        assert "allows registry.example/*" in refusal(namespace, {"image": "docker.io/me/x:1"})
        assert refusal(namespace, {"image": "registry.example/x:1"}) == ""
