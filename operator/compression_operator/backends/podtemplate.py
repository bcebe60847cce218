"""Pod templates: the user's merged under ours, and the security settings that nobody overrides. Pure functions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from compression_operator.api.pods import SECURITY_ANNOTATION

Json = dict[str, Any]

USER = 1000
"""User and group of the pods: what images/pipeline runs as, and what the volume's files belong to."""

USER_AND_GROUPS: Json = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}

POD_SECURITY: Json = {
    "runAsNonRoot": True,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
IDENTITY = ("runAsUser", "runAsGroup", "fsGroup")
"""Fields of the pod's security context that a template may set: a volume's files belong to somebody (NFS, say). Root is
nobody's to ask for. supplementalGroups and fsGroupChangePolicy may be set too.
"""

LARGEST_ID = 2**31 - 1
"""The largest user or group that Kubernetes takes."""

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
FORBIDDEN = ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "serviceAccount", "serviceAccountName", "nodeName")


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

    Volumes of the host, and the mounts of them, are left out.
    """
    metadata = _mapping(template.get("metadata"))
    spec = {name: value for name, value in _mapping(template.get("spec")).items() if name not in FORBIDDEN}
    volumes = [_mapping(volume) for volume in _sequence(spec.get("volumes"))]
    allowed = [volume for volume in volumes if not _reaches_out(volume)]
    gone = {volume.get("name") for volume in volumes if _reaches_out(volume)}
    for kind in CONTAINER_LISTS:
        if kind in spec:
            spec[kind] = [_secured_container(_mapping(container), gone) for container in _sequence(spec[kind])]
    security = {**POD_SECURITY, **user} | _identity(_mapping(spec.get("securityContext")))
    spec |= {"volumes": allowed, "securityContext": security, "automountServiceAccountToken": False}
    annotations = {
        name: value
        for name, value in _mapping(metadata.get("annotations")).items()
        if not re.search(SECURITY_ANNOTATION, name)
    }
    kept = {name: value for name, value in metadata.items() if name in ("labels", "annotations")}
    return {"metadata": kept | ({"annotations": annotations} if annotations or "annotations" in kept else {})} | {
        "spec": spec
    }


def _identity(wanted: Json) -> Json:
    """Who the pod is to be, of a security context, as far as that is nobody mighty."""
    found = {name: wanted[name] for name in IDENTITY if _harmless(wanted.get(name))}
    groups = [group for group in _sequence(wanted.get("supplementalGroups")) if _harmless(group)]
    if groups:
        found["supplementalGroups"] = groups
    if wanted.get("fsGroupChangePolicy") in ("Always", "OnRootMismatch"):
        found["fsGroupChangePolicy"] = wanted["fsGroupChangePolicy"]
    return found


def _harmless(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= LARGEST_ID


def _secured_container(container: Json, gone: set[Any]) -> Json:
    kept = {name: value for name, value in container.items() if name != "volumeDevices"}
    kept["securityContext"] = CONTAINER_SECURITY
    if "volumeMounts" in kept:
        mounts = [_mapping(mount) for mount in _sequence(kept["volumeMounts"])]
        kept["volumeMounts"] = [mount for mount in mounts if mount.get("name") not in gone]
    if "ports" in kept:
        ports = [_mapping(port) for port in _sequence(kept["ports"])]
        kept["ports"] = [{k: v for k, v in port.items() if k not in ("hostPort", "hostIP")} for port in ports]
    return kept


def _reaches_out(volume: Mapping[str, Any]) -> bool:
    """Whether the volume is a path of the host or brings a service account's token."""
    projected = _sequence(_mapping(volume.get("projected")).get("sources"))
    return "hostPath" in volume or any("serviceAccountToken" in _mapping(source) for source in projected)


def _merge_lists(name: str, ours: Sequence[Json], theirs: Sequence[Any]) -> list[Json]:
    """Ours first, in our order (the container that comes first is the one that tools show), then the rest of theirs."""
    key = (MERGED | REPLACED)[name]
    items = [_mapping(item) for item in theirs]
    by_key = {item.get(key): item for item in items}
    mine = [merge_under(item, by_key.get(item[key], {})) if name in MERGED else item for item in ours]
    taken = {item[key] for item in ours}
    return mine + [item for item in items if item.get(key) not in taken]


def _mapping(value: Any) -> Json:
    return dict(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> list[Any]:
    return list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else []
