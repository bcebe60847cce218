"""What the platform gives to every job: one settings object, and pure functions that complete a pod template by it.

The chart's `jobs` values are this object. A run's own word counts more than a default, and the operator's more than
both.
"""

from argparse import ArgumentTypeError
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Self, cast

import yaml
from pydantic import Field, ValidationError, model_validator

from compression_operator.api.phase_settings import PhaseSettings
from compression_operator.api.pods import (
    LabelValue,
    LocalObjectReference,
    ObjectName,
    Quantity,
    Resource,
    SecretKey,
    Toleration,
)
from compression_operator.api.run import GROUP, ObjectMeta
from compression_operator.api.templates import CONTAINER, OUR_VARIABLES, PodTemplates, TemplatePolicy
from compression_pipeline.config import ConfigModel

from .podtemplate import Json, merge_under

GPU = "nvidia.com/gpu"
CA_VOLUME, CA_FOLDER = "ca-bundle", "/etc/compression/ca"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Where Python, requests and Rust's TLS look for the authorities that they trust."""

HIDDEN: Json = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
"""NVIDIA's images ask for all GPUs of the node, and its runtime gives them to whoever asked for none by a resource."""

RESERVED = frozenset(OUR_VARIABLES)
"""Variables that are the operator's; a token among them would reach phases that shall not see it."""

QUEUE_PREFIX = "kueue.x-k8s.io/"
"""Labels of the run that its jobs carry over, and their pods don't: Kueue queues jobs by them, and pods if it can."""

_NEVER_INHERITED = ("kubectl.kubernetes.io/", f"{GROUP}/", QUEUE_PREFIX)
"""Prefixes of what concerns the run alone, or its jobs alone, whatever a pattern says."""


class KeyRef(ConfigModel):
    """One key of a Secret or a ConfigMap in the run's namespace."""

    name: ObjectName
    key: SecretKey
    optional: bool | None = None


class FieldRef(ConfigModel):
    """A field of the pod."""

    field_path: Annotated[str, Field(min_length=1)]
    api_version: str | None = None


class ResourceFieldRef(ConfigModel):
    """What a container of the pod asks for, or may use at most."""

    resource: Annotated[str, Field(min_length=1)]
    container_name: str | None = None
    divisor: Quantity | None = None


class ValueFrom(ConfigModel):
    """Where a variable's value comes from."""

    secret_key_ref: KeyRef | None = None
    config_map_key_ref: KeyRef | None = None
    field_ref: FieldRef | None = None
    resource_field_ref: ResourceFieldRef | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.to_json()) != 1:
            raise ValueError("name one of secretKeyRef, configMapKeyRef, fieldRef and resourceFieldRef")
        return self


class Variable(ConfigModel):
    """A variable of the jobs' environment, as in a container."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str | None = None
    value_from: ValueFrom | None = None

    @model_validator(mode="after")
    def _is_free(self) -> Self:
        if self.name in RESERVED:
            raise ValueError(f"{self.name} is set by the operator; remove it (a run names its token in secretRef)")
        return self


class CABundle(ConfigModel):
    """A ConfigMap of each run's namespace with the certificate authorities that its jobs trust, in PEM."""

    config_map: ObjectName | Annotated[str, Field(max_length=0)] = ""
    key: SecretKey = "ca.crt"


class GPUDefaults(ConfigModel):
    """How GPUs are asked for."""

    resource: Resource = GPU
    runtime_class_name: ObjectName | Annotated[str, Field(max_length=0)] = ""


class Ids(StrEnum):
    """Who chooses the user and the groups of pods."""

    FIXED = "Fixed"
    CLUSTER = "Cluster"


class User(ConfigModel):
    """Who the pods are, where a run's podTemplate does not say."""

    ids: Ids = Ids.FIXED
    run_as_user: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1000
    run_as_group: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1000
    fs_group: Annotated[int, Field(ge=1, le=2**31 - 1)] = 1000

    def security(self) -> dict[str, int]:
        """Fields of the pod's security context; none where the cluster chooses, as OpenShift does by namespace."""
        if self.ids is Ids.CLUSTER:
            return {}
        return {"runAsUser": self.run_as_user, "runAsGroup": self.run_as_group, "fsGroup": self.fs_group}


class JobDefaults(ConfigModel):
    """What the platform's jobs and pods have, beside what their run says."""

    env: tuple[Variable, ...] = ()
    ca_bundle: CABundle = CABundle()
    image_pull_secrets: tuple[LocalObjectReference, ...] = ()
    runtime_class_name: ObjectName | Annotated[str, Field(max_length=0)] = ""
    gpu: GPUDefaults = GPUDefaults()
    labels: dict[str, LabelValue] = Field(default={})
    annotations: dict[str, str] = Field(default={})
    inherit_labels: tuple[str, ...] = ()
    inherit_annotations: tuple[str, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    user: User = User()
    pod_template: PodTemplates = PodTemplates.RESTRICTED
    network_policy: bool = False
    allowed_images: tuple[Annotated[str, Field(min_length=1, pattern=r"^\S+$")], ...] = ()

    @property
    def policy(self) -> TemplatePolicy:
        """What runs may ask of their pods."""
        return TemplatePolicy(self.pod_template, self.allowed_images)

    def gpu_resource(self, settings: PhaseSettings, of_run: str | None) -> str:
        """The resource by which a phase asks for its GPUs: its own, its run's, else the platform's."""
        return settings.gpu_resource or of_run or self.gpu.resource

    def metadata(self, own: ObjectMeta) -> Json:
        """Labels and annotations of a run's jobs and pods, some of them the run's own."""
        labels = self.labels | inherited(own.labels, self.inherit_labels)
        annotations = self.annotations | inherited(own.annotations, self.inherit_annotations)
        return {"labels": labels} | ({"annotations": annotations} if annotations else {})


PLAIN = JobDefaults()
"""Where the platform says nothing."""


def job_defaults(text: str) -> JobDefaults:
    """The settings from JSON or YAML. Raises ArgumentTypeError, one sentence for each fault."""
    try:
        return JobDefaults.model_validate(yaml.safe_load(text) or {})
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ArgumentTypeError("; ".join(faults)) from error
    except yaml.YAMLError as error:
        raise ArgumentTypeError(" ".join(str(error).split())) from error


def inherited(own: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """What of a run's labels or annotations the patterns name: a whole name, or the beginning of one and a `*`."""
    wanted = tuple(patterns)
    return {name: value for name, value in own.items() if _named(name, wanted)}


def completed(template: Mapping[str, Any], defaults: JobDefaults, own: ObjectMeta, *, devices: bool) -> Json:
    """The template of a run's pods with what it leaves to the platform; `own` is the run's metadata.

    `devices`: the pods ask for GPUs, or for something like them.
    """
    named = {variable.name for variable in defaults.env}
    variables: list[Json] = [variable.to_json() for variable in defaults.env]
    volumes: list[Json] = []
    main: Json = {"name": CONTAINER}
    if defaults.ca_bundle.config_map:
        bundle = defaults.ca_bundle
        path = f"{CA_FOLDER}/{bundle.key}"
        variables += [{"name": name, "value": path} for name in CA_VARIABLES if name not in named]
        volumes = [{"name": CA_VOLUME, "configMap": {"name": bundle.config_map}}]
        main["volumeMounts"] = [{"name": CA_VOLUME, "mountPath": CA_FOLDER, "readOnly": True}]
    if not devices and HIDDEN["name"] not in named:
        variables.append(HIDDEN)
    spec: Json = {
        "containers": [main | {"env": variables}],
        "volumes": volumes,
        "imagePullSecrets": [secret.to_json() for secret in defaults.image_pull_secrets],
        "runtimeClassName": (defaults.gpu.runtime_class_name if devices else "") or defaults.runtime_class_name,
    }
    given = {name: value for name, value in spec.items() if value}
    merged = merge_under(template, {"metadata": defaults.metadata(own), "spec": given})
    for container in merged["spec"]["containers"]:
        if container.get("name") == CONTAINER:
            container["env"] = _in_order(container.get("env") or [], variables)
    tolerated = cast(list[Any], merged["spec"].get("tolerations") or [])
    further = [
        found for found in (toleration.to_json() for toleration in defaults.tolerations) if found not in tolerated
    ]
    if further:
        merged["spec"] = {**merged["spec"], "tolerations": [*tolerated, *further]}
    return merged


def asks_for_devices(settings: PhaseSettings) -> bool:
    """Whether the phase's pods get GPUs, by `gpusPerNode` or by a resource of a device plugin that they name."""
    resources = cast(Mapping[str, Mapping[str, object]], settings.resources or {})
    return settings.gpus_per_node > 0 or any("/" in name for amounts in resources.values() for name in amounts)


def _in_order(env: list[Json], platforms: list[Json]) -> list[Json]:
    """The operator's variables, the platform's, then the run's: $(NAME) in one is expanded by those before it."""
    return sorted(env, key=lambda one: (one.get("name") not in RESERVED, one not in platforms))


def _named(name: str, patterns: tuple[str, ...]) -> bool:
    return not name.startswith(_NEVER_INHERITED) and any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )
