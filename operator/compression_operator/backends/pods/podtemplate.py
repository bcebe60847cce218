"""Pod templates: the user's merged under ours, and the security settings that nobody overrides. Pure functions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from compression_operator.api import templates
from compression_operator.api.pods import SECURITY_ANNOTATION
from compression_operator.api.templates import HANDLERS, HOOKS, VOLUMES, kept

Json = dict[str, Any]

USER = 1000
"""User and group of the pods: what images/pipeline runs as, and what the volume's files belong to."""

USER_AND_GROUPS: Json = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}

POD_SECURITY: Json = {
    "runAsNonRoot": True,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Json = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "privileged": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}

MERGED = {"containers": "name", "initContainers": "name"}
"""Lists whose items are merged where they have the same key, as Kubernetes' own merging does."""

REPLACED = {"env": "name", "volumes": "name", "volumeMounts": "mountPath", "imagePullSecrets": "name"}
"""Lists where our item takes the place of theirs with the same key: half of each would be neither."""

CONTAINER_LISTS = ("containers", "initContainers", "ephemeralContainers")
FORBIDDEN = ("hostNetwork", "hostPID", "hostIPC", "serviceAccount", "serviceAccountName", "nodeName")


def merge_under(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Json:
    """`theirs` completed and corrected by `ours`: maps and keyed lists are merged, all else is ours where we say it."""
    merged: Json = {}
    for name, value in ours.items():
        other = theirs.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            merged[name] = merge_under(cast(Mapping[str, Any], value), cast(Mapping[str, Any], other))
        elif name in MERGED | REPLACED and isinstance(value, list) and isinstance(other, list):
            merged[name] = _merge_lists(name, cast(list[Json], value), cast(list[Any], other))
        else:
            merged[name] = value
    return merged | {name: value for name, value in theirs.items() if name not in merged}


def secured(template: Mapping[str, Any], user: Mapping[str, int] = USER_AND_GROUPS) -> Json:
    """The pod template as it may run: no root, token, host namespace, host port or host path, whatever it said.
    `user` is who it runs as where it does not say; empty: the cluster chooses.

    Runs whose templates say such things are refused before (see api/templates.py). This is the fence behind that.
    """
    metadata = _mapping(template.get("metadata"))
    spec = {name: value for name, value in _mapping(template.get("spec")).items() if name not in FORBIDDEN}
    # Null is absent for Kubernetes, and for what judged the template.
    volumes = [_without_nulls(_mapping(volume)) for volume in _sequence(spec.get("volumes"))]
    allowed = [volume for volume in volumes if not _reaches_out(volume)]
    gone = {volume.get("name") for volume in volumes if _reaches_out(volume)}
    security = {**POD_SECURITY, **user} | kept(spec.get("securityContext"), templates.POD_SECURITY)
    for kind in CONTAINER_LISTS:
        if kind in spec:
            spec[kind] = [_secured_container(_mapping(one), gone, security) for one in _sequence(spec[kind])]
    spec |= {"volumes": allowed, "securityContext": security, "automountServiceAccountToken": False}
    annotations = {
        name: value
        for name, value in _mapping(metadata.get("annotations")).items()
        if not re.search(SECURITY_ANNOTATION, name)
    }
    found = {name: value for name, value in metadata.items() if name in ("labels", "annotations")}
    return {"metadata": found | ({"annotations": annotations} if annotations or "annotations" in found else {})} | {
        "spec": spec
    }


def defaulted(template: Mapping[str, Any], user: Mapping[str, int] = USER_AND_GROUPS) -> Json:
    """The pod template with the same settings where it says nothing else: for platforms that restrict nothing."""
    spec = _mapping(template.get("spec"))
    said = _mapping(spec.get("securityContext"))
    security = {**POD_SECURITY, **user, **({"runAsNonRoot": False} if said.get("runAsUser") == 0 else {})} | said
    for kind in CONTAINER_LISTS:
        if kind in spec:
            containers = [_mapping(container) for container in _sequence(spec[kind])]
            spec[kind] = [
                c | {"securityContext": _contained(_mapping(c.get("securityContext")), security)} for c in containers
            ]
    named = any(spec.get(name) for name in ("serviceAccount", "serviceAccountName"))
    spec.setdefault("automountServiceAccountToken", named)
    spec["securityContext"] = security
    return {**template, "spec": spec}


def _contained(said: Json, pod: Json) -> Json:
    """The security context of a container, without the defaults that contradict what it says, or its pod."""
    added = _sequence(_mapping(said.get("capabilities")).get("add"))
    user = said.get("runAsUser")
    security: Json = CONTAINER_SECURITY | {
        "runAsNonRoot": pod["runAsNonRoot"] if user is None else user != 0,
        "seccompProfile": pod["seccompProfile"],
    }
    if said.get("privileged") or {"ALL", "SYS_ADMIN", "CAP_SYS_ADMIN"} & set(map(str, added)):
        # The API server refuses to have one of these gain no privileges.
        del security["allowPrivilegeEscalation"]
    if said.get("privileged") or "ALL" in added:
        del security["capabilities"]
    merged = _mapping(security.get("capabilities")) | _mapping(said.get("capabilities"))
    return security | said | ({"capabilities": merged} if merged else {})


def _secured_container(container: Json, gone: set[Any], pod: Json) -> Json:
    found = {name: value for name, value in container.items() if name != "volumeDevices"}
    security = kept(found.get("securityContext"), templates.CONTAINER_SECURITY)
    added = _sequence(_mapping(security.get("capabilities")).get("add"))
    capabilities = CONTAINER_SECURITY["capabilities"] | ({"add": added} if added else {})
    profile = {"seccompProfile": pod["seccompProfile"]}
    found["securityContext"] = CONTAINER_SECURITY | profile | security | {"capabilities": capabilities}
    if "volumeMounts" in found:
        mounts = [_mapping(mount) for mount in _sequence(found["volumeMounts"])]
        found["volumeMounts"] = [mount for mount in mounts if mount.get("name") not in gone]
    if "ports" in found:
        ports = [_mapping(port) for port in _sequence(found["ports"])]
        found["ports"] = [{k: v for k, v in port.items() if k not in ("hostPort", "hostIP")} for port in ports]
    found |= {name: _of_the_pod(_mapping(found[name])) for name in HANDLERS if name in found}
    if "lifecycle" in found:
        hooks = _mapping(found["lifecycle"])
        found["lifecycle"] = hooks | {name: _of_the_pod(_mapping(hooks[name])) for name in HOOKS if name in hooks}
    return found


def _of_the_pod(handler: Json) -> Json:
    """The handler without the name of another host: the kubelet would ask it from within the node's network."""
    asked = {name: _mapping(handler[name]) for name in ("httpGet", "tcpSocket") if name in handler}
    return handler | {name: {k: v for k, v in one.items() if k != "host"} for name, one in asked.items()}


def _reaches_out(volume: Mapping[str, Any]) -> bool:
    """Whether the volume is of no harmless type or brings a service account's rights."""
    projected = _sequence(_mapping(volume.get("projected")).get("sources"))
    rights = any(name in _mapping(source) for source in projected for name in templates.RIGHTS)
    return rights or bool(volume.keys() - {"name", *VOLUMES})


def _merge_lists(name: str, ours: Sequence[Json], theirs: Sequence[Any]) -> list[Json]:
    """Ours first, in our order (the container that comes first is the one that tools show), then the rest of theirs."""
    key = (MERGED | REPLACED)[name]
    items = [_mapping(item) for item in theirs]
    by_key = {item.get(key): item for item in items}
    mine = [merge_under(item, by_key.get(item[key], {})) if name in MERGED else item for item in ours]
    taken = {item[key] for item in ours}
    return mine + [item for item in items if item.get(key) not in taken]


def _without_nulls(value: Json) -> Json:
    return {name: one for name, one in value.items() if one is not None}


def _mapping(value: Any) -> Json:
    return dict(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> list[Any]:
    return list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else []
