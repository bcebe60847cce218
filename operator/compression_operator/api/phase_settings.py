"""`spec.phases` of a CompressionRun: settings of each phase's jobs."""

from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, create_model

from compression_pipeline.config import (
    PHASES,
    ConfigModel,
    Parallelism,
    ParallelLayout,
    Phase,
    PhaseSpec,
    Rule,
)
from compression_pipeline.config.base import cel_format, nearest_divisors

from .pods import (
    LabelValue,
    Resource,
    Resources,
    Toleration,
    Untyped,
)

MOST_PER_NODE, MOST_GPUS = 64, 16
"""Ranks of a pod, and GPUs."""
CEL_PER_NODE = "({0}.gpusPerNode > 0 ? {0}.gpusPerNode : {0}.processesPerNode)"
"""`PhaseSettings.per_node` as CEL, of the settings that it is formatted with."""


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
        le=MOST_GPUS,
        description="GPUs of one pod. Each GPU runs one rank. 0 runs on CPU. Local runs use the GPUs of the machine.",
    )
    gpu_resource: Resource | None = Field(default=None, description="Replaces jobTemplate.gpuResource for this phase.")
    processes_per_node: int = Field(
        default=1,
        ge=1,
        le=MOST_PER_NODE,
        description="Ranks of one pod if it has no GPUs. Ignored if gpusPerNode is above 0.",
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
    def split(self) -> Parallelism:
        """How a model is split over the ranks."""
        return Parallelism()

    @property
    def per_node(self) -> int:
        """Ranks of a pod: one for each GPU, without GPUs processesPerNode."""
        return self.gpus_per_node or self.processes_per_node

    @property
    def layout(self) -> ParallelLayout:
        """The ranks of the phase's jobs on a cluster. Raises ValueError where the rules do not hold."""
        return self.split.over(nodes=self.nodes, per_node=self.per_node)

    def split_on(self, gpus: int | None) -> Parallelism:
        """How a model is split over the ranks, on a machine with so many GPUs over those that there are. None: on a
        cluster, which has what these settings ask for.
        """
        return self.split if gpus is None else self.split.within(self._most(gpus))

    def layout_on(self, gpus: int | None, micro_batches: int | None = None) -> ParallelLayout:
        """The ranks of jobs, as `local/concurrency.py` starts them. `gpus`: see `split_on`. `micro_batches`: those of a
        step, which the copies share evenly; None: any number of copies will do.
        """
        if gpus is None:
            return self.layout
        split, most = self.split_on(gpus), self._most(gpus)
        return split.over(nodes=1, per_node=most if micro_batches is None else split.most_ranks(most, micro_batches))

    def _most(self, gpus: int) -> int:
        gpus_per_node = min(self.gpus_per_node, gpus)
        return gpus_per_node or self.processes_per_node


_UNSHARED = "%d does not divide the %d GPUs of a node (gpusPerNode; without GPUs processesPerNode), nearest: "


def _within_a_node(settings: "TrainingSettings") -> str | None:
    tensor, ranks = settings.parallelism.tensor, settings.per_node
    return _UNSHARED % (tensor, ranks) + nearest_divisors(ranks, tensor) if ranks % tensor else None


def _cel_within_a_node() -> tuple[str, str]:
    """`_within_a_node` as CEL: the rule and its sentence."""
    tensor = "self.parallelism.tensor"
    # Of the default of these settings the API server asks before it fills in those of their fields.
    holds = f"!has(self.parallelism) || {tensor} < 1 || {CEL_PER_NODE.format('self')} % {tensor} == 0"
    return holds, _cel_nearest(_UNSHARED, tensor, CEL_PER_NODE.format("self"))


_UNSTAGED = "%d does not divide the %d GPUs (nodes x gpusPerNode) over parallelism.tensor, nearest: "


def _stages_fit(settings: "TrainingSettings") -> str | None:
    split = settings.parallelism
    left = Parallelism(tensor=split.tensor).copies(nodes=settings.nodes, per_node=settings.per_node)
    if left is None or left % split.pipeline == 0:
        return None
    return _UNSTAGED % (split.pipeline, left) + nearest_divisors(left, split.pipeline, most=MOST_PER_NODE)


def _cel_stages_fit() -> tuple[str, str]:
    """`_stages_fit` as CEL."""
    tensor, stages = "self.parallelism.tensor", "self.parallelism.pipeline"
    ranks = f"self.nodes * {CEL_PER_NODE.format('self')}"
    left = f"({ranks} / {tensor})"
    bounds = f"!has(self.parallelism) || {tensor} < 1 || {stages} < 1 || ({ranks}) % {tensor} != 0"
    return f"{bounds} || {left} % {stages} == 0", _cel_nearest(_UNSTAGED, stages, left)


def _cel_nearest(template: str, size: str, number: str) -> str:
    """The CEL expression for `template` and `nearest_divisors`, of which none above the most of a node is told."""
    divisors = f"{list(range(1, MOST_PER_NODE + 1))}.filter(n, {number} % n == 0"
    below, above = f"{divisors} && n <= {size})", f"{divisors} && n > {size})"
    told = (size, number, f"{below}[{below}.size() - 1]")
    alone, both = cel_format(f"{template}%d", *told), cel_format(f"{template}%d or %d", *told, f"{above}[0]")
    return f"{above}.size() == 0 ? {alone} : {both}"


class TrainingSettings(PhaseSettings):
    """How the jobs of a phase run that trains."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "parallelism.tensor",
            _within_a_node,
            cel=_cel_within_a_node()[0],
            message=_cel_within_a_node()[1],
            where="cluster",
        ),
        Rule(
            "parallelism.pipeline",
            _stages_fit,
            cel=_cel_stages_fit()[0],
            message=_cel_stages_fit()[1],
            where="cluster",
        ),
    )

    parallelism: Parallelism = Field(
        default=Parallelism(),
        description="How a copy of teacher and student is split over GPUs, where it does not fit on one. The GPUs that "
        "are left over hold further copies, which share the batch. It changes the result by rounding only. A local run "
        "with fewer GPUs than a copy takes splits it over those that there are.",
    )

    @property
    def split(self) -> Parallelism:
        return self.parallelism


class SingleProcessSettings(PhaseSettings):
    """How the jobs of a phase run that are one process each."""

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
    several = TrainingSettings if spec.trains else PhaseSettings
    general = several if spec.trains or spec.spreads else SingleProcessSettings
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
