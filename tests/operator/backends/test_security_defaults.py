"""Where a platform restricts nothing: what a run says of security replaces what contradicts it, and nothing else."""

from typing import Any

import pytest

from compression_operator.backends.pods.podtemplate import CONTAINER_SECURITY, POD_SECURITY, defaulted, secured


def contexts(container: dict[str, Any], pod: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Security contexts of the container and of the pod, where a run says these."""
    containers = [{"name": "pytorch", "securityContext": container}]
    spec = defaulted({"spec": {"containers": containers, "securityContext": pod or {}}})["spec"]
    return spec["containers"][0]["securityContext"], spec["securityContext"]


def test_nothing_said_is_as_restricted_as_ever() -> None:
    container, pod = contexts({})
    assert container == CONTAINER_SECURITY and POD_SECURITY.items() <= pod.items()


@pytest.mark.parametrize(
    ("said", "capabilities"),
    [
        ({"add": ["IPC_LOCK"]}, {"drop": ["ALL"], "add": ["IPC_LOCK"]}),
        ({"drop": ["NET_RAW"]}, {"drop": ["NET_RAW"]}),
        ({"add": ["ALL"]}, {"add": ["ALL"]}),
    ],
)
def test_capabilities_are_merged(said: dict[str, Any], capabilities: dict[str, Any]) -> None:
    assert contexts({"capabilities": said})[0]["capabilities"] == capabilities


@pytest.mark.parametrize("added", ["CAP_SYS_ADMIN", "SYS_ADMIN"])
def test_whoever_has_all_rights_is_not_said_to_gain_none(added: str) -> None:
    """The API server refuses a pod that says both."""
    privileged = contexts({"privileged": True})[0]
    assert privileged["privileged"] is True
    assert not {"allowPrivilegeEscalation", "capabilities"} & privileged.keys()
    assert "allowPrivilegeEscalation" not in contexts({"capabilities": {"add": [added]}})[0]
    assert contexts({"privileged": True, "allowPrivilegeEscalation": True})[0]["allowPrivilegeEscalation"] is True


@pytest.mark.parametrize(
    ("container", "pod", "in_container", "in_pod"),
    [
        ({"runAsUser": 0}, {}, False, True),
        ({}, {"runAsUser": 0}, False, False),
        ({"runAsUser": 7}, {"runAsUser": 0}, True, False),
        ({}, {"runAsNonRoot": False}, False, False),
        ({"runAsUser": 0, "runAsNonRoot": True}, {}, True, True),  # their own word, and the kubelet's to refuse
    ],
)
def test_root_is_not_said_to_be_nobody_of_the_kind(
    container: dict[str, Any], pod: dict[str, Any], in_container: bool, in_pod: bool
) -> None:
    """Before it starts a container the kubelet compares the two."""
    found = contexts(container, pod)
    assert [context["runAsNonRoot"] for context in found] == [in_container, in_pod]


@pytest.mark.parametrize("hardened", [defaulted, secured])
def test_a_profile_of_the_pod_is_its_containers_too(hardened: Any) -> None:
    profile = {"type": "Localhost", "localhostProfile": "p.json"}
    spec = {"containers": [{"name": "pytorch"}], "securityContext": {"seccompProfile": profile}}
    assert hardened({"spec": spec})["spec"]["containers"][0]["securityContext"]["seccompProfile"] == profile
