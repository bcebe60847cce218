"""What a run's pod templates may say: an allow-list. What is not in it is refused by name, never left out in silence.

It follows the restricted Pod Security Standard, and leaves to the operator what is the operator's: the pipeline's
program, its identity, its volumes. A platform's administrator may narrow it or open it (`TemplatePolicy`).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, cast

from .pods import SECURITY_ANNOTATION

Finding: TypeAlias = tuple[str, str]
Check: TypeAlias = Callable[[Any, str], Iterator[Finding]]
"""Of a value at a path: what is wrong with it."""

Shape: TypeAlias = Mapping[str, Check]
"""The fields that an object may have."""

LARGEST_ID = 2**31 - 1
"""The largest user or group that Kubernetes takes."""

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
OUR_VOLUMES = re.compile(r"(store|shared-memory|tmp|ca-bundle|source-[0-9a-f]{10})$")
OUR_MOUNTS = re.compile(r"/(compression|sources|tmp|dev/shm|etc/compression)(/.*)?$")
OUR_VARIABLES = {
    "HF_TOKEN": "set teacher.secretRef, which only prepare sees",
    "HUGGING_FACE_HUB_TOKEN": "set teacher.secretRef, which only prepare sees",
    "COMPRESSION_CONFIG": "the operator sets it",
    "HF_HUB_OFFLINE": "the operator sets it: prepare alone may reach the Hub",
    "HOME": "the operator sets it, for the root file system is read-only",
    "PYTHONUNBUFFERED": "the operator sets it",
}
OUR_LABELS = re.compile(
    r"(modelcompression\.io/.*|training\.kubeflow\.org/.*|app\.kubernetes\.io/(name|component|part-of|managed-by))$"
)


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
        return not self.images or any(fnmatchcase(image, pattern) for pattern in self.images)


ANYBODYS = TemplatePolicy()
"""Of an installation that says nothing else."""


class TemplateRefused(Exception):
    """A run says something of its pods that this installation of the operator does not allow."""

    def __init__(self, found: Sequence[Finding]) -> None:
        super().__init__("; ".join(f"{path} {why}" for path, why in found))


def template_findings(spec: Any, policy: TemplatePolicy = ANYBODYS) -> Iterator[Finding]:
    """Everything in a run's `spec` (JSON) that its jobs' pods may not have, with the paths of the fields."""
    shared, phases = _mapping(_mapping(spec).get("jobTemplate")), _mapping(_mapping(spec).get("phases"))
    yield from image_findings(shared.get("image"), "spec.jobTemplate.image", policy)
    places = [("spec.jobTemplate", shared), *((f"spec.phases.{name}", _mapping(phases[name])) for name in phases)]
    for path, settings in places:
        template = settings.get("podTemplate")
        if not template:
            continue
        path = f"{path}.podTemplate"
        if policy.templates is PodTemplates.FORBIDDEN:
            yield path, "is not allowed: this installation of the operator takes no pod templates"
            continue
        yield from _template(template, path, policy)


def kept(value: Any, shape: Shape) -> dict[str, Any]:
    """The fields of an object that its shape takes."""
    return {name: one for name, one in _mapping(value).items() if name in shape and not any(shape[name](one, ""))}


# -- checks -----------------------------------------------------------------------------------------------------------


def _any(value: Any, path: str) -> Iterator[Finding]:
    yield from ()


def _only(why: str, *allowed: Any) -> Check:
    """One of these values; `why` no other one."""

    def check(value: Any, path: str) -> Iterator[Finding]:
        # 1 is no true, and 0 no false.
        if not any(value == one and type(value) is type(one) for one in allowed):
            yield path, why

    return check


def _fields(shape: Shape, why: str = "is not in what a pod template may say; leave it out") -> Check:
    def check(value: Any, path: str) -> Iterator[Finding]:
        if not isinstance(value, Mapping):
            yield path, "must be an object"
            return
        for name, one in cast(Mapping[str, Any], value).items():
            if one is not None:
                yield from shape[name](one, f"{path}.{name}") if name in shape else ((f"{path}.{name}", why),)

    return check


def _each(item: Check) -> Check:
    def check(value: Any, path: str) -> Iterator[Finding]:
        if not isinstance(value, list):
            yield path, "must be a list"
            return
        for index, one in enumerate(cast(list[Any], value)):
            yield from item(one, f"{path}[{index}]")

    return check


def _within(allowed: tuple[str, ...], why: str) -> Check:
    return _each(_only(why, *allowed))


def harmless(number: Any) -> bool:
    """Whether this is a user or group other than root."""
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= LARGEST_ID


def _id(value: Any, path: str) -> Iterator[Finding]:
    if not harmless(value):
        yield path, f"must be a number from 1 to {LARGEST_ID}: pods do not run as root"


def image_findings(value: Any, path: str, policy: TemplatePolicy) -> Iterator[Finding]:
    """That the policy refuses this image, if it does."""
    if isinstance(value, str) and not policy.takes(value):
        yield path, f"is not allowed: this installation of the operator takes {', '.join(policy.images)}"


_ADMINISTRATOR = "the operator's administrator may allow it (chart value jobs.podTemplate)"
_NODE = f"is not allowed: pods keep apart from their node; leave it out, or {_ADMINISTRATOR}"
_ACCOUNT = f"is not allowed: pods have no service account's rights; leave it out, or {_ADMINISTRATOR}"
_STANDARD = f"is not allowed by the restricted Pod Security Standard; leave it out, or {_ADMINISTRATOR}"
_LEAVE = "is the operator's to set; leave it out"

_SECCOMP = _fields({"type": _only(_STANDARD, "RuntimeDefault", "Localhost"), "localhostProfile": _any})
_SELINUX = _fields({"type": _only(_STANDARD, "", *SELINUX_TYPES), "level": _any}, _STANDARD)
_BOTH: Shape = {
    "runAsNonRoot": _only(_STANDARD, True),
    "runAsUser": _id,
    "runAsGroup": _id,
    "seccompProfile": _SECCOMP,
    "appArmorProfile": _SECCOMP,
    "seLinuxOptions": _SELINUX,
}
"""Of the security contexts of pods and of containers."""

POD_SECURITY: Shape = {
    **_BOTH,
    "fsGroup": _id,
    "fsGroupChangePolicy": _only("must be Always or OnRootMismatch", "Always", "OnRootMismatch"),
    "supplementalGroups": _each(_id),
    "supplementalGroupsPolicy": _any,
    "seLinuxChangePolicy": _any,
    "sysctls": _each(_fields({"name": _only(_STANDARD, *SYSCTLS), "value": _any})),
}
CONTAINER_SECURITY: Shape = {
    **_BOTH,
    "privileged": _only(_STANDARD, False),
    "allowPrivilegeEscalation": _only(_STANDARD, False),
    "readOnlyRootFilesystem": _only("must be true or false", True, False),
    "procMount": _only(_STANDARD, "Default"),
    "capabilities": _fields({"drop": _any, "add": _within(("NET_BIND_SERVICE",), _STANDARD)}),
}

_HANDLER = _fields(
    {
        "exec": _any,
        "grpc": _any,
        "sleep": _any,
        "httpGet": _fields(
            {"host": _only(_STANDARD, ""), "path": _any, "port": _any, "scheme": _any, "httpHeaders": _any}
        ),
        "tcpSocket": _fields({"host": _only(_STANDARD, ""), "port": _any}),
        "initialDelaySeconds": _any,
        "timeoutSeconds": _any,
        "periodSeconds": _any,
        "successThreshold": _any,
        "failureThreshold": _any,
        "terminationGracePeriodSeconds": _any,
    }
)
HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe")
HOOKS = ("postStart", "preStop")


def _volume(policy: TemplatePolicy) -> Check:
    def check(value: Any, path: str) -> Iterator[Finding]:
        volume = _mapping(value)
        yield from image_findings(_mapping(volume.get("image")).get("reference"), f"{path}.image.reference", policy)
        if OUR_VOLUMES.match(str(volume.get("name"))):
            yield f"{path}.name", f"{volume['name']} is the name of a volume of the operator's; give it another one"
        if policy.templates is not PodTemplates.RESTRICTED:
            return
        for kind in volume.keys() - {"name", *VOLUMES}:
            yield f"{path}.{kind}", f"{_STANDARD}; it takes {', '.join(VOLUMES)}"
        sources = _mapping(volume.get("projected")).get("sources")
        for index, source in enumerate(_sequence(sources)):
            for kind in RIGHTS:
                if kind in _mapping(source):
                    yield f"{path}.projected.sources[{index}].{kind}", _ACCOUNT

    return check


def _mount(value: Any, path: str) -> Iterator[Finding]:
    where = str(_mapping(value).get("mountPath"))
    if OUR_MOUNTS.match(re.sub(r"/+", "/", where)):
        yield f"{path}.mountPath", f"{where} is where the operator mounts a volume of its own; take another path"


def _variable(value: Any, path: str) -> Iterator[Finding]:
    name = str(_mapping(value).get("name"))
    if name in OUR_VARIABLES:
        yield path, f"{name} cannot be set here: {OUR_VARIABLES[name]}"


_OVERWRITTEN = ("command", "args", "restartPolicy", "terminationMessagePath", "terminationMessagePolicy")
"""Of the pipeline's container: what is the operator's."""


def _containers(policy: TemplatePolicy, *, may_be_ours: bool) -> Check:
    restricted = policy.templates is PodTemplates.RESTRICTED
    limits: Shape = {
        "ports": _each(_fields(dict.fromkeys(("name", "containerPort", "protocol"), _any), _NODE)),
        "securityContext": _fields(CONTAINER_SECURITY, _STANDARD),
        "lifecycle": _fields(dict.fromkeys(HOOKS, _HANDLER) | {"stopSignal": _any}),
        **dict.fromkeys(HANDLERS, _HANDLER),
    }
    plain = ("name", "workingDir", "env", "envFrom", "resources", "resizePolicy", "volumeMounts", "imagePullPolicy")
    terminal = ("stdin", "stdinOnce", "tty")
    loose = dict.fromkeys((*limits, *plain, *terminal, "image", *_OVERWRITTEN), _any)
    shape: dict[str, Check] = loose | (dict(limits) if restricted else {})

    def check(value: Any, path: str) -> Iterator[Finding]:
        container = _mapping(value)
        ours = may_be_ours and container.get("name") == CONTAINER
        own = shape
        if ours:
            own = shape | {
                "image": _only("cannot be set here: set spec.jobTemplate.image"),
                "imagePullPolicy": _only("cannot be set here: set spec.jobTemplate.imagePullPolicy"),
                "env": _each(_variable),
                "volumeMounts": _each(_mount),
                **dict.fromkeys(_OVERWRITTEN, _only(_LEAVE)),
            }
        yield from image_findings(None if ours else container.get("image"), f"{path}.image", policy)
        if restricted or ours:
            yield from _fields(own)(value, path) if restricted else _ours_alone(container, own, path)

    return _each(check)


def _ours_alone(container: Mapping[str, Any], shape: Shape, path: str) -> Iterator[Finding]:
    """Of the pipeline's container where nothing else is restricted: what would be overwritten."""
    for name, value in container.items():
        if name in shape and value is not None:
            yield from shape[name](value, f"{path}.{name}")


def _template(template: Any, path: str, policy: TemplatePolicy) -> Iterator[Finding]:
    yield from _fields({"metadata": _fields({"labels": _labels, "annotations": _annotations}), "spec": _any})(
        template, path
    )
    spec, path = _mapping(template).get("spec"), f"{path}.spec"
    if spec is None:
        return
    containers = _containers(policy, may_be_ours=True)
    ours: dict[str, Check] = {
        "containers": containers,
        "initContainers": _containers(policy, may_be_ours=False),
        "volumes": _each(_volume(policy)),
        "restartPolicy": _only(_LEAVE, "Never"),
        "terminationGracePeriodSeconds": _only(
            "cannot be set here: set terminationGracePeriodSeconds of the phase (spec.phases)"
        ),
        "activeDeadlineSeconds": _only("cannot be set here: set activeDeadlineSeconds of the phase (spec.phases)"),
        "enableServiceLinks": _only(_LEAVE, False),
    }
    if policy.templates is PodTemplates.UNRESTRICTED:
        yield from _ours_alone(_mapping(spec), ours, path)
        return
    free = (
        *("affinity", "dnsConfig", "dnsPolicy", "hostAliases", "imagePullSecrets", "nodeSelector", "preemptionPolicy"),
        *("priorityClassName", "resourceClaims", "resources", "runtimeClassName", "schedulerName", "schedulingGates"),
        *("shareProcessNamespace", "tolerations", "topologySpreadConstraints", "hostname", "subdomain", "overhead"),
        *("setHostnameAsFQDN", "os", "readinessGates"),
    )
    shape = dict.fromkeys(free, _any) | ours
    shape |= dict.fromkeys(("hostNetwork", "hostPID", "hostIPC"), _only(_NODE, False))
    shape |= {"hostUsers": _any, "nodeName": _only(_NODE)}
    shape |= dict.fromkeys(("serviceAccountName", "serviceAccount"), _only(_ACCOUNT))
    shape |= {"automountServiceAccountToken": _only(_ACCOUNT, False)}
    shape |= {"securityContext": _fields(POD_SECURITY, _STANDARD)}
    yield from _fields(shape)(spec, path)


def _labels(value: Any, path: str) -> Iterator[Finding]:
    for name in _mapping(value):
        if OUR_LABELS.match(name):
            yield f"{path}[{name}]", _LEAVE


def _annotations(value: Any, path: str) -> Iterator[Finding]:
    for name in _mapping(value):
        if re.search(SECURITY_ANNOTATION, name):
            yield f"{path}[{name}]", "is not allowed: it switches a confinement off; leave it out"


def _mapping(value: Any) -> dict[str, Any]:
    return dict(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else {}


def _sequence(value: Any) -> list[Any]:
    return list(cast(list[Any], value)) if isinstance(value, list) else []
