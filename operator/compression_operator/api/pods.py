"""The parts of pods that a CompressionRun passes on, typed as far as a mistake in them can be told early."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from compression_pipeline.config import ConfigModel, Rule

SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
"""DNS-1123 subdomain: the form of most object names."""

LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"

QUALIFIED = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
"""Key of a label or name of a resource, e.g. nvidia.com/gpu."""

QUANTITY = r"^([0-9]+([.][0-9]*)?|[.][0-9]+)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][-+]?[0-9]+)?$"

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=SUBDOMAIN, examples=["my-object"])]
Resource = Annotated[
    str,
    Field(
        min_length=3,
        max_length=317,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        examples=["amd.com/gpu"],
    ),
]
"""Name of what a device plugin offers."""
SecretKey = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", examples=["token"])]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE, examples=["gpu-pool"])]
Quantity = (
    Annotated[int, Field(ge=0)]
    | Annotated[str, Field(min_length=1, max_length=32, pattern=QUANTITY, examples=["64Gi"])]
)
Untyped = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]
"""Passed on as it is; the API server checks it when the job's pods are made."""


SECURITY_ANNOTATION = r"(^|[.])security[.](alpha|beta)[.]kubernetes[.]io/"
"""Annotations that switched AppArmor and seccomp off before there were fields for it; still honoured by some."""


class SecretKeyRef(ConfigModel):
    """One key of a Secret in the run's namespace."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: SecretKey = Field(description="Key in the Secret.")


class LocalObjectReference(ConfigModel):
    """An object in the run's namespace."""

    name: ObjectName = Field(description="Name of the object.")


class PersistentVolumeClaimRef(ConfigModel):
    """A claim in the run's namespace."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule.of(
            "subPath",
            "must be a relative path without .. in it, e.g. teams/compression",
            lambda claim: (
                claim.sub_path is None or not (claim.sub_path.startswith("/") or ".." in claim.sub_path.split("/"))
            ),
            "!has(self.subPath) || !self.subPath.matches('^/|^(.*/)?[.][.](/.*)?$')",
        ),
    )

    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim.")
    sub_path: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Folder of the volume that holds the artifacts. Default: the root of the volume.",
    )


class Operator(StrEnum):
    """How a toleration compares."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(ConfigModel):
    """A taint that the pods tolerate."""

    key: str | None = Field(
        default=None,
        min_length=1,
        max_length=317,
        pattern=QUALIFIED,
        examples=["nvidia.com/gpu"],
        description="Key of the taint. Matches every taint if not set.",
    )
    operator: Operator | None = Field(
        default=None, description="Equal compares the value; Exists matches any value. Default: Equal."
    )
    value: LabelValue | None = Field(default=None, description="Value of the taint, if operator is Equal.")
    effect: TaintEffect | None = Field(
        default=None, description="Effect of the taint. Matches every effect if not set."
    )
    toleration_seconds: int | None = Field(
        default=None, description="Seconds that a NoExecute taint is tolerated. Default: forever."
    )


class Resources(TypedDict, total=False):
    """Requests and limits of a container, as in a pod."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # pyright: ignore[reportGeneralTypeIssues]  # pydantic's own hook

    requests: Annotated[
        dict[str, Quantity],
        Field(max_length=32, description="Resources that are reserved for the container, e.g. cpu: 8, memory: 64Gi."),
    ]
    limits: Annotated[
        dict[str, Quantity],
        Field(max_length=32, description="Maximum that the container may use. GPUs come from gpusPerNode."),
    ]
