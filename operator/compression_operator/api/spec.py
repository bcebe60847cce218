"""`spec` of a CompressionRun: what the user asks for."""

import re
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from compression_pipeline.config import (
    ASKING,
    DEFAULT_ENGINE,
    PHASES,
    AcceptConfig,
    Cache,
    ConfigModel,
    DatasetConfig,
    DistillConfig,
    EngineName,
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    NameOf,
    PruneConfig,
    Ranking,
    Rule,
    TeacherConfig,
    TrainingConfig,
    ValidationConfig,
)
from compression_pipeline.config.schemes import in_words, needed_secrets

from .job_kinds import DEFAULT_JOB_KIND, JOB_KINDS
from .phase_settings import PhaseSettingsByPhase
from .pods import (
    QUANTITY,
    SECURITY_ANNOTATION,
    LabelValue,
    LocalObjectReference,
    ObjectName,
    PersistentVolumeClaimRef,
    Resource,
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
        description="Secret with the Hub token for a gated teacher or dataset. Only prepare and tasks receive it. "
        f"Space around it is removed. Local runs take {in_words(needed_secrets(), ' and ')} from the environment.",
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
    prune: PruneConfig = Field(description="Sizes that the student keeps of the teacher.")
    distill: DistillConfig | None = Field(
        default=None,
        description="Distillation of this student only. It replaces spec.distill as a whole; nothing is merged.",
    )
    accept: AcceptConfig | None = Field(
        default=None, description="Gate of this student only. It replaces spec.accept as a whole; nothing is merged."
    )


class Storage(ConfigModel):
    """Where artifacts and checkpoints live. Local runs keep them under their work directory."""

    persistent_volume_claim: PersistentVolumeClaimRef = Field(
        description="Claim that every pod mounts at /compression. Its access mode must be ReadWriteMany unless all "
        "pods run on one node."
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
        description="Pipeline image. Default: the operator's pipelineImage at the time it first saw the run, recorded "
        "in status.image. An upgrade of the operator does not change it. If an edit of the run plans a step anew, "
        "the run switches to the operator's current pipelineImage.",
    )
    image_pull_policy: ImagePullPolicy | None = Field(
        default=None,
        description="When the image is pulled. Default: Always for the tag latest, otherwise IfNotPresent.",
    )
    image_pull_secrets: list[LocalObjectReference] = Field(
        default=[],
        max_length=16,
        description="Secrets in the run's namespace for pulling the image.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    node_selector: dict[str, LabelValue] = Field(
        default={},
        max_length=64,
        description="Labels that a node must have to run the pods, e.g. nvidia.com/gpu.product: NVIDIA-H200.",
    )
    tolerations: list[Toleration] = Field(
        default=[],
        max_length=32,
        description="Taints that the pods tolerate. A step waits for an unreachable node for as long as its pods "
        "tolerate node.kubernetes.io/unreachable (300 s unless set here).",
    )
    affinity: Untyped | None = Field(default=None, description="Affinity of the pods, as in a pod spec.")
    gpu_resource: Resource | None = Field(
        default=None,
        description="Resource name with which pods request GPUs, e.g. amd.com/gpu or nvidia.com/mig-3g.40gb. Default: "
        "the operator's setting, nvidia.com/gpu unless changed at installation.",
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
        default=[], max_length=16, description="How the pods spread over nodes and zones, as in a pod spec."
    )
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of the pods.")
    shared_memory: str | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        pattern=QUANTITY,
        examples=["16Gi"],
        description="Size limit of /dev/shm, which is a memory volume, e.g. 16Gi. What is written there counts "
        "against the memory limit. Default: no limit of its own.",
    )
    pod_template: Untyped | None = Field(
        default=None,
        description="Pod template (metadata and spec) for the jobs' pods. The operator's own values and the fields "
        "beside this one take precedence. It may set what the restricted Pod Security Standard allows, e.g. "
        "runAsUser, runAsGroup and fsGroup (not 0) for the group of an NFS volume. Other fields (e.g. the service "
        "account, host namespaces, hostPath, the command and image of the container pytorch) are refused. The run's "
        "conditions and compression validate --cluster name each refused field. The operator's administrator can "
        "allow more or less.",
    )


class CompressionRunSpec(ConfigModel):
    """A teacher, the text, and the students to make."""

    rules: ClassVar[tuple[Rule, ...]] = spec_rules()

    teacher: Teacher = Field(description="The model to compress.")
    dataset: DatasetConfig = Field(description="Text for correcting the teacher and distilling the students.")
    finetune: FinetuneConfig | None = Field(
        default=None,
        description="Teacher correction: a short training of the teacher on the dataset, before "
        "pruning. Skipped if not set.",
    )
    students: Annotated[list[Student], Field(min_length=1, max_length=32)] = Field(
        description="Students to make. All share one prepared dataset and one corrected teacher.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    distill: DistillConfig | None = Field(
        default=None,
        description="Distillation of every student that has no distill of its own. Required unless all "
        "students have one.",
    )
    accept: AcceptConfig | None = Field(
        default=None,
        description="Gate of every student that has no accept of its own. If a student misses it, the run fails with "
        "reason GateMissed once all students are done. Every student is exported, also one that misses its gate.",
    )
    engine: EngineName = Field(
        default=DEFAULT_ENGINE, description="Engine of finetune, prune and distill. A change runs them again."
    )
    export: ExportConfig = Field(
        default=ExportConfig(), description="How the students are written as Hugging Face checkpoints."
    )
    validation: ValidationConfig = Field(default=ValidationConfig(), description="How validation loss is measured.")
    evaluate: EvaluateConfig | None = Field(
        default=None,
        description="Tasks that the teacher, the corrected teacher and every student are scored by, and the speed of "
        "their generation. Skipped if not set.",
    )
    storage: Storage | None = Field(
        default=None,
        description="Where artifacts and checkpoints are kept. Required on a cluster. Local runs keep them in their "
        "work directory.",
    )
    cache: Cache = Field(
        default=Cache.STORE,
        description="Which existing artifacts steps reuse. Store: any artifact in the storage whose files match its "
        "manifest. Whoever can write to the volume can change both. Run: only artifacts that this run (its UID) "
        "made, verified against the digests in its status, which cannot be changed through the volume. With Run, "
        "artifacts have names of their own, each step reads all files of its inputs first, artifacts that the status "
        "does not list are made again, and importance and tasks are measured each time, because the status lists no "
        "digests of these. In both modes, a step accepts an "
        "input only with the digest that was recorded when the run made or reused it. Changing this field makes all "
        "steps run again.",
    )
    job_template: JobTemplate = Field(
        default=JobTemplate(),
        description="Settings shared by the pods of all jobs. The jobs also get the run's Kueue labels (e.g. "
        "kueue.x-k8s.io/queue-name), and those of its labels and annotations that the operator is configured to pass "
        "on. Local runs ignore it.",
    )
    phases: PhaseSettingsByPhase = Field(
        default=PhaseSettingsByPhase(),
        description="Settings of each phase's jobs: nodes, GPUs, resources, retries, deadlines and scheduling.",
    )
    backend: Annotated[str, NameOf(lambda: JOB_KINDS)] = Field(
        default=DEFAULT_JOB_KIND,
        description="Kind of job that runs the phases on a cluster.",
    )
    suspend: bool = Field(
        default=False,
        description="Whether to suspend the run. Running jobs write a checkpoint and stop, and no new "
        "ones start until it is false again.",
    )
    max_parallel_jobs: int = Field(
        default=2,
        ge=1,
        le=32,
        description="Maximum number of jobs of this run that run at the same time. A job that waits for a GPU does not "
        "keep one that needs no GPU from starting. If several could start, those that train and export "
        "start before those that evaluate.",
    )
    job_history_limit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Number of ended jobs to keep per step, newest first, e.g. for kubectl logs. The status keeps "
        "their results. A job that a sidecar keeps alive is deleted a minute after its step is done. Local runs keep "
        "every log.",
    )
    ttl_seconds_after_finished: int = Field(
        default=604_800,
        ge=0,
        le=315_360_000,
        description="Seconds after which an ended job is deleted together with its pods. Artifacts and the run itself "
        "are kept. Local runs keep every log.",
    )

    def text_sources(self) -> dict[str, str]:
        """The dataset's sources, by the field that names each."""
        texts = self.dataset.texts
        return {f"{self.dataset.field_of(number)}.source": text.source for number, text in enumerate(texts)}

    def task_sources(self) -> dict[str, str]:
        """The folders of the user's own tasks, by the field that names each."""
        tasks = self.evaluate.tasks if self.evaluate else []
        named = ((f"evaluate.tasks[{n}].source", task.source) for n, task in enumerate(tasks))
        return {field: source for field, source in named if source is not None}

    def depth_task(self, student: Student | None) -> EvaluateConfig | None:
        """How the task is asked that the student's layers are ranked by; None if they are not, or by none that there
        is.
        """
        importance = student.prune.importance if student else None
        if importance is None or importance.depth not in ASKING:
            return None
        return self._asked(importance.depth_task, importance.depth_samples)

    def rank_task(self, student: Student | None) -> EvaluateConfig | None:
        """How the task is asked that the student's candidates are ranked by; None as by `depth_task`."""
        target = student.prune.target if student else None
        if target is None or target.rank is not Ranking.TASK:
            return None
        return self._asked(target.rank_task, target.rank_samples)

    def watched_tasks(self, student: Student | None) -> EvaluateConfig | None:
        """The tasks that the student is scored by while it is distilled."""
        distill = (student and student.distill) or self.distill
        if self.evaluate is None or distill is None or distill.task_interval is None:
            return None
        tasks = [task for task in self.evaluate.tasks if not distill.tasks or task.name in distill.tasks]
        return EvaluateConfig(tasks=tasks, batch_size=self.evaluate.batch_size)

    def _asked(self, name: str | None, samples: int | None) -> EvaluateConfig | None:
        """The task of this name, or the first, and so many questions of it, or its own number of them."""
        for task in self.evaluate.tasks if self.evaluate else ():
            if name in (None, task.name):
                asked = task.model_copy(update={"limit": samples or task.limit})
                return EvaluateConfig(tasks=[asked], batch_size=self.evaluate.batch_size) if self.evaluate else None
        return None

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
