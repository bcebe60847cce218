"""What a run's pod templates may say: an allow-list. What is not in it is refused by name, never left out in silence.

It follows the restricted Pod Security Standard, and leaves to the operator what is the operator's: the pipeline's
program, its identity, its volumes. A platform's administrator may narrow it or open it (`TemplatePolicy`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from compression_pipeline.config.schemes import SCHEMES

from .faults import Finding
from .job_kinds import JOB_KINDS
from .pods import SECURITY_ANNOTATION
from .shapes import (
    LARGEST_ID,
    All,
    Anything,
    Check,
    Each,
    Fields,
    Free,
    Images,
    Keys,
    Named,
    Number,
    Only,
    Shape,
)

CONTAINER = "pytorch"
"""Name of the pipeline's container: the one that the training operator looks for."""

VOLUMES = (
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
)
"""Types of volumes of the restricted Pod Security Standard."""

RIGHTS = ("serviceAccountToken", "podCertificate")
"""Sources of projected volumes by which a pod is somebody."""

SYSCTLS = (
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
)
"""Kernel parameters that the standard calls safe."""

SELINUX_TYPES = ("container_t", "container_init_t", "container_kvm_t", "container_engine_t")
OUR_VOLUMES = r"^(store|shared-memory|tmp|ca-bundle|source-[0-9a-f]{10})$"
OUR_MOUNTS = r"^/+(compression|sources|tmp|dev/+shm|etc/+compression)(/|$)"
OUR_VARIABLES = {
    **{
        name: "set teacher.secretRef, which only prepare and tasks receive"
        for scheme in SCHEMES.values()
        for name in (*scheme.secrets, *scheme.also_secret)
    },
    "COMPRESSION_CONFIG": "the operator sets it",
    **{
        name: f"the operator sets it, because only prepare and tasks may reach {scheme.server}"
        for scheme in SCHEMES.values()
        for name in scheme.offline
    },
    "HOME": "the operator sets it, because the root file system is read-only",
    "PYTHONUNBUFFERED": "the operator sets it",
}
_KINDS_LABELS = "".join(rf"{re.escape(kind.labels)}/.*|" for kind in JOB_KINDS.values())
OUR_LABELS = rf"^(modelcompression\.io/.*|{_KINDS_LABELS}app\.kubernetes\.io/(name|component|part-of|managed-by))$"


IMAGE_PATH = "spec.jobTemplate.image"
NO_TEMPLATES = "is not allowed: this installation of the operator allows no pod templates"


class PodTemplates(StrEnum):
    """What runs may say in podTemplate."""

    RESTRICTED = "Restricted"
    FORBIDDEN = "Forbidden"
    UNRESTRICTED = "Unrestricted"


@dataclass(frozen=True)
class TemplatePolicy:
    """What an installation of the operator allows."""

    templates: PodTemplates = PodTemplates.RESTRICTED
    images: tuple[str, ...] = ()  # patterns, * for any text; empty: every image

    def takes(self, image: str) -> bool:
        return Images(self.images).takes(image)


ANYBODYS = TemplatePolicy()
"""Of an installation that says nothing else."""


class TemplateRefused(Exception):
    """A run says something of its pods that this installation of the operator does not allow."""

    def __init__(self, found: Sequence[Finding]) -> None:
        super().__init__("; ".join(f"{path} {why}" for path, why in found))


def template_findings(spec: Any, policy: TemplatePolicy = ANYBODYS) -> Iterator[Finding]:
    """Everything in a run's `spec` (JSON) that its jobs' pods may not have, with the paths of the fields."""
    shared, phases = _mapping(_mapping(spec).get("jobTemplate")), _mapping(_mapping(spec).get("phases"))
    yield from image_findings(shared.get("image"), IMAGE_PATH, policy)
    places = [("spec.jobTemplate", shared), *((f"spec.phases.{name}", _mapping(phases[name])) for name in phases)]
    for path, settings in places:
        template = settings.get("podTemplate")
        if not template:
            continue
        path = f"{path}.podTemplate"
        if policy.templates is PodTemplates.FORBIDDEN:
            yield path, NO_TEMPLATES
            continue
        yield from template_check(policy).findings(template, path)


def kept(value: Any, shape: Shape) -> dict[str, Any]:
    """The fields of an object that its shape takes."""
    return {
        name: one for name, one in _mapping(value).items() if name in shape and not any(shape[name].findings(one, ""))
    }


def image_findings(value: Any, path: str, policy: TemplatePolicy) -> Iterator[Finding]:
    """That the policy refuses this image, if it does."""
    yield from Images(policy.images).findings(value, path)


# -- the table --------------------------------------------------------------------------------------------------------

_ANY = Anything()
_ADMINISTRATOR = "the operator's administrator may allow it (chart value jobs.podTemplate)"
_NODE = f"is not allowed, because it gives access to the node; leave it out, or {_ADMINISTRATOR}"
_ACCOUNT = f"is not allowed, because pods must not have a service account's rights; leave it out, or {_ADMINISTRATOR}"
_STANDARD = f"is not allowed by the restricted Pod Security Standard; leave it out, or {_ADMINISTRATOR}"
_LEAVE = "is set by the operator; leave it out"

_ID = Number(f"must be a number from 1 to {LARGEST_ID}, because pods do not run as root", 1, LARGEST_ID)
_SECCOMP = Fields({"type": Only(_STANDARD, ("RuntimeDefault", "Localhost")), "localhostProfile": _ANY})
_SELINUX = Fields({"type": Only(_STANDARD, ("", *SELINUX_TYPES)), "level": _ANY}, _STANDARD)
_BOTH: Shape = {
    "runAsNonRoot": Only(_STANDARD, (True,)),
    "runAsUser": _ID,
    "runAsGroup": _ID,
    "seccompProfile": _SECCOMP,
    "appArmorProfile": _SECCOMP,
    "seLinuxOptions": _SELINUX,
}
"""Of the security contexts of pods and of containers."""

POD_SECURITY: Shape = {
    **_BOTH,
    "fsGroup": _ID,
    "fsGroupChangePolicy": Only("must be Always or OnRootMismatch", ("Always", "OnRootMismatch")),
    "supplementalGroups": Each(_ID),
    "supplementalGroupsPolicy": _ANY,
    "seLinuxChangePolicy": _ANY,
    "sysctls": Each(Fields({"name": Only(_STANDARD, SYSCTLS), "value": _ANY})),
}
CONTAINER_SECURITY: Shape = {
    **_BOTH,
    "privileged": Only(_STANDARD, (False,)),
    "allowPrivilegeEscalation": Only(_STANDARD, (False,)),
    "readOnlyRootFilesystem": Only("must be true or false", (True, False)),
    "procMount": Only(_STANDARD, ("Default",)),
    "capabilities": Fields({"drop": _ANY, "add": Each(Only(_STANDARD, ("NET_BIND_SERVICE",)))}),
}

_NO_HOST = Only(_STANDARD, ("",))
_HANDLER = Fields(
    {
        "httpGet": Fields({"host": _NO_HOST, **dict.fromkeys(("path", "port", "scheme", "httpHeaders"), _ANY)}),
        "tcpSocket": Fields({"host": _NO_HOST, "port": _ANY}),
        **dict.fromkeys(("exec", "grpc", "sleep", "initialDelaySeconds", "timeoutSeconds", "periodSeconds"), _ANY),
        **dict.fromkeys(("successThreshold", "failureThreshold", "terminationGracePeriodSeconds"), _ANY),
    }
)
HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe")
HOOKS = ("postStart", "preStop")

_OVERWRITTEN = ("command", "args", "restartPolicy", "terminationMessagePath", "terminationMessagePolicy")
"""Of the pipeline's container: what is the operator's."""

_CONTAINER = Fields(
    {
        "ports": Each(Fields(dict.fromkeys(("name", "containerPort", "protocol"), _ANY), _NODE)),
        "securityContext": Fields(CONTAINER_SECURITY, _STANDARD),
        "lifecycle": Fields(dict.fromkeys(HOOKS, _HANDLER) | {"stopSignal": _ANY}),
        **dict.fromkeys(HANDLERS, _HANDLER),
        **dict.fromkeys(("name", "image", "imagePullPolicy", "workingDir", "env", "envFrom", "resources"), _ANY),
        **dict.fromkeys(("resizePolicy", "volumeMounts", "stdin", "stdinOnce", "tty", *_OVERWRITTEN), _ANY),
    }
)
"""What the standard says of any container."""

_OURS = Fields(
    {
        "image": Only("cannot be set here: set spec.jobTemplate.image"),
        "imagePullPolicy": Only("cannot be set here: set spec.jobTemplate.imagePullPolicy"),
        "env": Each(
            Named({name: Only(f"{name} cannot be set here: {why}") for name, why in OUR_VARIABLES.items()}, _ANY)
        ),
        "volumeMounts": Each(
            Fields(
                {"mountPath": Free(OUR_MOUNTS, "is where the operator mounts one of its volumes; choose another path")},
                None,
            )
        ),
        **dict.fromkeys(_OVERWRITTEN, Only(_LEAVE)),
    },
    None,
)
"""Of the pipeline's container: what would be overwritten."""

_METADATA = Fields(
    {
        "labels": Keys(OUR_LABELS, _LEAVE),
        "annotations": Keys(
            SECURITY_ANNOTATION, "is not allowed, because it disables AppArmor or seccomp; leave it out"
        ),
    }
)

_UNCHECKED = (
    *("affinity", "dnsConfig", "dnsPolicy", "hostAliases", "imagePullSecrets", "nodeSelector", "preemptionPolicy"),
    *("priorityClassName", "resourceClaims", "resources", "runtimeClassName", "schedulerName", "schedulingGates"),
    *("shareProcessNamespace", "tolerations", "topologySpreadConstraints", "hostname", "subdomain", "overhead"),
    *("setHostnameAsFQDN", "os", "readinessGates", "hostUsers"),
)
"""Of a pod's spec: what is the run's own business."""

_RESTRICTED: Shape = {
    **dict.fromkeys(_UNCHECKED, _ANY),
    **dict.fromkeys(("hostNetwork", "hostPID", "hostIPC"), Only(_NODE, (False,))),
    "nodeName": Only(_NODE),
    **dict.fromkeys(("serviceAccountName", "serviceAccount"), Only(_ACCOUNT)),
    "automountServiceAccountToken": Only(_ACCOUNT, (False,)),
    "securityContext": Fields(POD_SECURITY, _STANDARD),
}


def template_check(policy: TemplatePolicy) -> Check:
    """What the policy says of a podTemplate, where it takes any."""
    restricted, images = policy.templates is PodTemplates.RESTRICTED, Images(policy.images)
    theirs = Fields({"image": images}, None)
    shape: Shape = {
        "containers": _containers(Named({CONTAINER: _OURS}, theirs), restricted=restricted),
        "initContainers": _containers(theirs, restricted=restricted),
        "volumes": Each(_volume(images, restricted=restricted)),
        "restartPolicy": Only(_LEAVE, ("Never",)),
        "terminationGracePeriodSeconds": Only(
            "cannot be set here: set terminationGracePeriodSeconds of the phase (spec.phases)"
        ),
        "activeDeadlineSeconds": Only("cannot be set here: set activeDeadlineSeconds of the phase (spec.phases)"),
        "enableServiceLinks": Only(_LEAVE, (False,)),
    }
    spec = Fields({**_RESTRICTED, **shape}) if restricted else Fields(shape, None)
    return Fields({"metadata": _METADATA, "spec": spec})


def _containers(check: Check, *, restricted: bool) -> Check:
    return All((Each(_CONTAINER), Each(check, strict=False))) if restricted else Each(check)


def _volume(images: Images, *, restricted: bool) -> Check:
    shape: Shape = {
        "name": Free(OUR_VOLUMES, "is the name of one of the operator's volumes; choose another name"),
        "image": Fields({"reference": images}, None),
    }
    if not restricted:
        return Fields(shape, None)
    sources = Each(Fields(dict.fromkeys(RIGHTS, Only(_ACCOUNT)), None))
    kinds = dict.fromkeys(VOLUMES, _ANY) | {"projected": Fields({"sources": sources}, None)}
    return Fields({**kinds, **shape}, f"{_STANDARD}; it takes {', '.join(VOLUMES)}")


def _mapping(value: Any) -> dict[str, Any]:
    return dict(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else {}
