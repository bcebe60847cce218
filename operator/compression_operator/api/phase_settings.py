"""`spec.phases` of a CompressionRun: settings of each phase's jobs."""

from copy import copy
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from compression_pipeline.config import (
    PHASES,
    ConfigModel,
    ParallelLayout,
    Phase,
    PhaseSpec,
)

from .pods import (
    LabelValue,
    Resource,
    Resources,
    Toleration,
    Untyped,
)


class PhaseSettings(ConfigModel):
    """How the jobs of one phase run. The phases that train take any number of nodes and GPUs."""

    nodes: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Number of pods of the job: a master and nodes - 1 workers. Local runs use one node.",
    )
    gpus_per_node: int = Field(
        default=0,
        ge=0,
        le=16,
        description="GPUs of one pod. Each GPU runs one rank. 0 runs on CPU. Local runs use the GPUs of the machine.",
    )
    gpu_resource: Resource | None = Field(default=None, description="Replaces jobTemplate.gpuResource for this phase.")
    processes_per_node: int = Field(
        default=1, ge=1, le=64, description="Ranks of one pod if it has no GPUs. Ignored if gpusPerNode is above 0."
    )
    resources: Resources | None = Field(
        default=None,
        description="Requests and limits of the container, as in a pod spec. The operator adds the GPUs. Local runs "
        "ignore it.",
    )
    retry_limit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Number of retries after transient failures, with increasing delays. The next transient failure "
        "fails the step. Interruptions (an eviction, a lost node) do not count. Mistakes in the manifest are not "
        "retried.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Running time after which an attempt fails, in seconds. Time spent waiting does not count. "
        "Default: no limit.",
    )
    progress_deadline_seconds: int = Field(
        default=1800,
        ge=60,
        le=604_800,
        description="Seconds without progress after which a running job counts as hung and is stopped and retried. A "
        "job reports nothing while it starts (imports alone take half a minute) or loads a large model.",
    )
    rendezvous_timeout_seconds: int = Field(
        default=600,
        ge=10,
        le=604_800,
        description="Seconds that the running pods of a job wait for its other pods to be scheduled. After that the "
        "attempt ends, which frees their resources, and a new attempt starts after a delay. It counts as an "
        "interruption, not as a failure.",
    )
    termination_grace_period_seconds: int = Field(
        default=300, ge=1, le=86_400, description="Seconds that a stopped job has to write a checkpoint."
    )
    node_selector: dict[str, LabelValue] | None = Field(
        default=None,
        max_length=64,
        description="Replaces jobTemplate.nodeSelector for this phase. {} lets the phase run on any node, e.g. one "
        "without GPUs.",
    )
    tolerations: list[Toleration] | None = Field(
        default=None, max_length=32, description="Replaces jobTemplate.tolerations for this phase."
    )
    affinity: Untyped | None = Field(default=None, description="Replaces jobTemplate.affinity for this phase.")
    pod_template: Untyped | None = Field(
        default=None, description="Pod template merged over jobTemplate.podTemplate, under the same restrictions."
    )

    @property
    def layout(self) -> ParallelLayout:
        """The ranks of the phase's jobs on a cluster: one for each GPU, without GPUs processesPerNode of a pod."""
        return ParallelLayout(nodes=self.nodes, per_node=self.gpus_per_node or self.processes_per_node)


class SingleProcessSettings(PhaseSettings):
    """How the jobs of a phase run that does not train: each is one process."""

    nodes: int = Field(
        default=1,
        ge=1,
        le=1,
        description="Number of pods of the job. Always 1, because this phase is a single process.",
    )
    gpus_per_node: int = Field(
        default=0,
        ge=0,
        le=1,
        description="GPUs of the pod. 0 runs on CPU. One process does the work, so the teacher must fit on one GPU.",
    )
    processes_per_node: int = Field(
        default=1, ge=1, le=1, description="Ranks of the pod. Always 1, because this phase is a single process."
    )


class SettingsByPhase(ConfigModel):
    """Settings of each phase's jobs."""

    def of(self, phase: str) -> PhaseSettings:
        """The settings of this phase's jobs."""
        return getattr(self, PHASES[Phase(phase)].program)


def _settings_field(spec: PhaseSpec) -> tuple[type[PhaseSettings], Any]:
    """The field of PhaseSettingsByPhase that holds the settings of the phase: its type and default."""
    general = PhaseSettings if spec.trains else SingleProcessSettings
    gpus = copy(general.model_fields["gpus_per_node"])
    gpus.default = spec.gpus
    if not spec.gpus:
        gpus.description = "GPUs of the pod. This phase does not need one."
    kind = create_model(general.__name__, __base__=general, __doc__=general.__doc__, gpus_per_node=(int, gpus))
    return kind, Field(default=kind(), description=f"Settings of the jobs that {spec.purpose}.")


if TYPE_CHECKING:
    PhaseSettingsByPhase = SettingsByPhase
else:  # one field for each entry of PHASES that has settings of its own
    PhaseSettingsByPhase = create_model(
        "PhaseSettingsByPhase",
        __base__=SettingsByPhase,
        __doc__=SettingsByPhase.__doc__,
        **{phase.value: _settings_field(spec) for phase, spec in PHASES.items() if spec.program is phase},
    )
