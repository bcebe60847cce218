"""The resource itself."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from compression_pipeline.config import ConfigModel

from .pods import LabelValue, ObjectName
from .spec import CompressionRunSpec
from .status import CompressionRunStatus

GROUP = "modelcompression.io"
VERSION = "v1alpha1"
API_VERSION = "modelcompression.io/v1alpha1"
KIND = "CompressionRun"
PLURAL = "compressionruns"
RETRY_ANNOTATION = f"{GROUP}/retry"
SOURCES_ANNOTATION = f"{GROUP}/sources"
"""Digest of the local files that teacher and dataset name; local runs write it, and raise the generation when it
changes.
"""
TASK_SOURCES_ANNOTATION = f"{GROUP}/task-sources"
"""Of those that evaluate.tasks names, if there are any; it is written and watched likewise."""
DEVICES_ANNOTATION = f"{GROUP}/devices"
"""What a local run found to compute on, `GPU` or `CPU`; it is written and watched likewise. A cluster has what the
manifest asks for: see `cluster_run`."""
CPU, GPU = "CPU", "GPU"
GPUS_ANNOTATION = f"{GROUP}/gpus"
"""How many GPUs a local run found. Their number changes no artifact, and so the generation stays."""
NOTED = (SOURCES_ANNOTATION, TASK_SOURCES_ANNOTATION, DEVICES_ANNOTATION, GPUS_ANNOTATION)
"""What only local runs note."""


class ObjectMeta(BaseModel):
    """The part of metav1.ObjectMeta that the operator reads."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},  # the rest of metav1.ObjectMeta
    )

    name: ObjectName = Field(description="Name of the run; unique in its namespace.")
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: list[str] | None = None
    labels: dict[str, LabelValue] = {}
    annotations: dict[str, str] = {}

    @property
    def key(self) -> str:
        """What queues and logs know the run by."""
        return f"{self.namespace}/{self.name}"


class CompressionRun(ConfigModel):
    """Compresses a large language model into smaller students: teacher correction, pruning, distillation, export."""

    api_version: Literal["modelcompression.io/v1alpha1"] = API_VERSION
    kind: Literal["CompressionRun"] = KIND
    metadata: ObjectMeta = Field(description="Name, namespace, labels and annotations.")
    spec: CompressionRunSpec = Field(description="Desired result: a teacher, a dataset and the students to make.")
    status: CompressionRunStatus = Field(
        default=CompressionRunStatus(), description="Observed state of the run. Only the operator writes it."
    )


def cluster_run(body: Any) -> CompressionRun:
    """The resource of a cluster as a model. Raises ValidationError.

    What only local runs note of their machine says nothing of a cluster, whoever has written it there.
    """
    run = CompressionRun.model_validate(body)
    annotations = {name: value for name, value in run.metadata.annotations.items() if name not in NOTED}
    return run.model_copy(update={"metadata": run.metadata.model_copy(update={"annotations": annotations})})
