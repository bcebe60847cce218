"""`spec` of a CompressionRun: what the user asks for."""

import re
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from compression_pipeline.config import (
    PHASES,
    Cache,
    ConfigModel,
    DatasetConfig,
    DistillConfig,
    ExportConfig,
    FinetuneConfig,
    PruneConfig,
    Rule,
    TeacherConfig,
    TrainingConfig,
    ValidationConfig,
)
from compression_pipeline.config.schemes import in_words, needed_secrets

from .job_kinds import DEFAULT_JOB_KIND, JOB_KINDS, known_job_kind
from .pods import (
    QUANTITY,
    SECURITY_ANNOTATION,
    LabelValue,
    LocalObjectReference,
    ObjectName,
    PersistentVolumeClaimRef,
    Resource,
    Resources,
    SecretKeyRef,
    Toleration,
    Untyped,
)
from .rules import spec_rules

DNS_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


class Teacher(TeacherConfig):
    """The model to compress, and the secret that opens it."""

    secret_ref: SecretKeyRef | None = Field(
        default=None,
        description="Hub token for a gated teacher or dataset; only prepare sees it. White space around it is left "
        f"out. Local runs take {in_words(needed_secrets(), ' and ')} from the environment.",
    )


class Student(ConfigModel):
    """One smaller model to make."""

    name: str = Field(
        min_length=1,
        max_length=40,
        pattern=DNS_LABEL,
        examples=["width"],
        description="Name of the student; unique within the run.",
    )
    prune: PruneConfig = Field(description="What the student keeps of the teacher.")
    distill: DistillConfig | None = Field(
        default=None, description="Distillation of this student alone; replaces spec.distill as a whole."
    )


class Storage(ConfigModel):
    """Where artifacts and checkpoints live. Local runs keep them under their work directory."""

    persistent_volume_claim: PersistentVolumeClaimRef = Field(
        description="Claim that every pod mounts at /compression. ReadWriteMany, unless all pods share one node."
    )


class ImagePullPolicy(StrEnum):
    """When the pods' image is pulled."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class JobTemplate(ConfigModel):
    """What every job's pods share; a phase may say otherwise. Local runs ignore it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule.of(
            "annotations",
            "may not switch AppArmor or seccomp off: remove those of security.alpha.kubernetes.io and "
            "security.beta.kubernetes.io",
            lambda template: not any(re.search(SECURITY_ANNOTATION, name) for name in template.annotations),
            f"!has(self.annotations) || !self.annotations.exists(name, name.matches('{SECURITY_ANNOTATION}'))",
        ),
    )

    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="Pipeline image. Default: the one that the operator was installed with when it first looked at the "
        "run. It stands in status.image. An upgrade of the operator alone does not change it; after an edit that plans "
        "a step anew it is the one that the operator has by then.",
    )
    image_pull_policy: ImagePullPolicy | None = Field(
        default=None,
        description="When the image is pulled. Default: Always for the tag latest, IfNotPresent otherwise.",
    )
    image_pull_secrets: list[LocalObjectReference] = Field(
        default=[],
        max_length=16,
        description="Secrets of the run's namespace that open the image's registry.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    node_selector: dict[str, LabelValue] = Field(
        default={}, max_length=64, description="Labels that nodes must have, e.g. nvidia.com/gpu.product: NVIDIA-H200."
    )
    tolerations: list[Toleration] = Field(
        default=[],
        max_length=32,
        description="Taints that the pods tolerate. For how long they tolerate node.kubernetes.io/unreachable (300 s "
        "unless given) is for how long a step waits for a node that does not answer.",
    )
    affinity: Untyped | None = Field(default=None, description="Affinity of the pods, as in a pod.")
    gpu_resource: Resource | None = Field(
        default=None,
        description="Resource by which pods ask for their GPUs, e.g. amd.com/gpu or nvidia.com/mig-3g.40gb. Default: "
        "the one that the operator was installed with, nvidia.com/gpu unless told otherwise.",
    )
    labels: dict[str, LabelValue] = Field(
        default={}, max_length=64, description="Labels of the jobs and their pods, e.g. for cost centres and policies."
    )
    annotations: dict[str, Annotated[str, Field(max_length=4096)]] = Field(
        default={},
        max_length=64,
        description="Annotations of the jobs and their pods, e.g. for an autoscaler.",
    )
    topology_spread_constraints: list[Untyped] = Field(
        default=[], max_length=16, description="How the pods spread over nodes and zones, as in a pod."
    )
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")
    shared_memory: str | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        pattern=QUANTITY,
        examples=["16Gi"],
        description="Size of /dev/shm, a memory volume, e.g. 16Gi. It counts against the memory limit. Default: what "
        "the node allows.",
    )
    pod_template: Untyped | None = Field(
        default=None,
        description="A pod template (metadata and spec) merged under the operator's own and the fields beside this "
        "one. It may say what the restricted Pod Security Standard allows, e.g. runAsUser, runAsGroup and fsGroup (not "
        "0) for an NFS volume's group. Anything else (service account, host namespaces, hostPath, the command and "
        "image of the container pytorch, ...) is refused by name, in the run's conditions and by compression validate "
        "--cluster; the operator's administrator may allow more, or less.",
    )


class PhaseSettings(ConfigModel):
    """How the jobs of one phase run. The phases that train take any number of nodes and GPUs."""

    nodes: int = Field(
        default=1, ge=1, le=1024, description="Pods of the job: a master and nodes - 1 workers. One in a local run."
    )
    gpus_per_node: int = Field(
        default=8,
        ge=0,
        le=16,
        description="GPUs of one pod, and so its ranks; 0 runs on CPU. Local runs take the GPUs that they find.",
    )
    gpu_resource: Resource | None = Field(default=None, description="In place of jobTemplate.gpuResource.")
    processes_per_node: int = Field(
        default=1, ge=1, le=64, description="Ranks of one pod that has no GPUs. Without effect where it has some."
    )
    resources: Resources | None = Field(
        default=None,
        description="Requests and limits of the container, as in a pod; GPUs are added. Local runs ignore it.",
    )
    retry_limit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Passing faults that are retried, with growing pauses; one more and the step has failed. "
        "Interruptions (eviction, a lost node) do not count, mistakes in the manifest are not retried.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Running time after which an attempt has failed; waiting does not count. Default: no limit.",
    )
    progress_deadline_seconds: int = Field(
        default=1800,
        ge=60,
        le=604_800,
        description="Silence of a running job after which it counts as hung: it is stopped and retried. A job says "
        "nothing while it starts (its imports alone take half a minute) or loads a large model.",
    )
    rendezvous_timeout_seconds: int = Field(
        default=600,
        ge=10,
        le=604_800,
        description="Time for which the pods of a job of several keep their places while others of it have none. Then "
        "the attempt gives them back, and the next one comes after a pause: it counts as interrupted, not as failed.",
    )
    termination_grace_period_seconds: int = Field(
        default=300, ge=1, le=86_400, description="Time to write a checkpoint when a job is stopped."
    )
    node_selector: dict[str, LabelValue] | None = Field(
        default=None,
        max_length=64,
        description="In place of jobTemplate.nodeSelector; {} lets the phase run on any node, e.g. without GPUs.",
    )
    tolerations: list[Toleration] | None = Field(
        default=None, max_length=32, description="In place of jobTemplate.tolerations."
    )
    affinity: Untyped | None = Field(default=None, description="In place of jobTemplate.affinity.")
    pod_template: Untyped | None = Field(
        default=None, description="A pod template merged over jobTemplate.podTemplate; what holds for that holds here."
    )


class SingleProcessSettings(PhaseSettings):
    """How the jobs of a phase run that is one process, without a GPU unless asked for."""

    nodes: int = Field(default=1, ge=1, le=1, description="Pods of the job. This phase is a single process: always 1.")
    gpus_per_node: int = Field(default=0, ge=0, le=1, description="GPUs of the pod. The phase needs none.")
    processes_per_node: int = Field(
        default=1, ge=1, le=1, description="Ranks of the pod. This phase is a single process: always 1."
    )


class PruneSettings(SingleProcessSettings):
    """How prune's jobs run: one process, on one GPU unless told otherwise."""

    gpus_per_node: int = Field(
        default=1,
        ge=0,
        le=1,
        description="GPUs of the pod; 0 runs on CPU. Pruning is a single process, so one GPU holds the teacher.",
    )


class PhaseSettingsByPhase(ConfigModel):
    """Settings of each phase's jobs."""

    prepare: SingleProcessSettings = Field(
        default=SingleProcessSettings(), description="Jobs that fetch the teacher and tokenize the text."
    )
    finetune: PhaseSettings = Field(default=PhaseSettings(), description="Jobs that correct the teacher.")
    prune: PruneSettings = Field(default=PruneSettings(), description="Jobs that cut the students out of the teacher.")
    distill: PhaseSettings = Field(default=PhaseSettings(), description="Jobs that train the students.")
    export: SingleProcessSettings = Field(
        default=SingleProcessSettings(), description="Jobs that write the students as Hugging Face checkpoints."
    )


class CompressionRunSpec(ConfigModel):
    """A teacher, the text, and the students to make."""

    rules: ClassVar[tuple[Rule, ...]] = spec_rules()

    teacher: Teacher = Field(description="The model to compress.")
    dataset: DatasetConfig = Field(description="The text that the teacher is corrected on and the students learn from.")
    finetune: FinetuneConfig | None = Field(
        default=None, description="Teacher correction before pruning: a short training on the dataset. Absent: skipped."
    )
    students: Annotated[list[Student], Field(min_length=1, max_length=32)] = Field(
        description="The students to make. All share one prepared dataset and one corrected teacher.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    distill: DistillConfig | None = Field(
        default=None, description="Distillation of every student that does not bring its own."
    )
    export: ExportConfig = Field(default=ExportConfig(), description="The Hugging Face checkpoints to write.")
    validation: ValidationConfig = Field(default=ValidationConfig(), description="How validation loss is measured.")
    evaluate: ValidationConfig | None = Field(default=None, description="Renamed to validation; refused.")
    storage: Storage | None = Field(
        default=None,
        description="Where artifacts live. Required on a cluster; local runs keep them under their work directory.",
    )
    cache: Cache = Field(
        default=Cache.STORE,
        description="Whose artifacts steps take instead of making them. Store: any that lies on the storage and holds "
        "what its manifest says; whoever may write the volume can write both. Run: only what this very run (its UID) "
        "has made, by the digests in its status, which no writer of the volume can change. Its artifacts get names of "
        "their own, all of each input is read before a step, and what the status does not tell of is made again. In "
        "both cases a step takes no other input than the one that this run has seen made. A change makes all steps run "
        "again.",
    )
    job_template: JobTemplate = Field(
        default=JobTemplate(),
        description="What every job's pods share. The run's own Kueue labels, like kueue.x-k8s.io/queue-name, are "
        "carried over to its jobs, and so are the labels and annotations that the operator was told to. Local runs "
        "ignore it.",
    )
    phases: PhaseSettingsByPhase = Field(
        default=PhaseSettingsByPhase(),
        description="Per phase: nodes, GPUs, resources, retries, deadlines, and where its pods run.",
    )
    backend: Annotated[str, AfterValidator(known_job_kind)] = Field(
        default=DEFAULT_JOB_KIND,
        description="What runs the jobs on a cluster.",
        json_schema_extra=lambda schema: schema.update(enum=[*JOB_KINDS]),
    )
    suspend: bool = Field(
        default=False, description="Stops running jobs at a checkpoint and starts no more, until it is false again."
    )
    max_parallel_jobs: int = Field(
        default=2,
        ge=1,
        le=32,
        description="Jobs of this run that may run at once. One that waits for a GPU leaves its place to one "
        "that needs none.",
    )
    job_history_limit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Ended jobs of each step that stay to be looked at (kubectl logs), the newest ones. What they told "
        "stands in the status. A job that a sidecar keeps alive goes a minute after its step is done. Local runs keep "
        "every log.",
    )
    ttl_seconds_after_finished: int = Field(
        default=604_800,
        ge=0,
        le=315_360_000,
        description="Time after its end when a job is removed with its pods. Artifacts and the run itself always stay. "
        "Default: a week. Local runs keep every log.",
    )

    def trainings(self) -> dict[str, TrainingConfig]:
        """Every training that the manifest asks for, by its field."""
        found: dict[str, TrainingConfig] = {}
        for phase in (phase for phase, spec in PHASES.items() if spec.trains):
            shared: TrainingConfig | None = getattr(self, phase)
            own: dict[str, TrainingConfig | None] = {
                f"students[{n}].{phase}": getattr(student, phase, None) for n, student in enumerate(self.students)
            }
            if shared and not all(own.values()):
                found[phase.value] = shared
            found |= {field: training for field, training in own.items() if training}
        return found
