"""Settings of the training phases: teacher correction (finetune) and distillation."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from .base import ConfigModel, Operational, Rule, cel_format, cel_indivisible, indivisible
from .cached_logits import MOST_KEPT, TOP_K, TeacherLogits, cached_rules
from .losses import (
    CHOSEN_BY_AUTO,
    OF_LIKELIEST,
    ON_LOGITS,
    LogitsKL,
    LossField,
    is_balanced,
    is_clear,
    twice,
)
from .tasks import MOST_TASKS


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; master weights are float32 either way."""

    AUTO = "Auto"  # BF16 on GPU, FP32 on CPU
    BF16 = "BF16"
    FP32 = "FP32"

    @property
    def words(self) -> str:
        """What it means for who reads a figure."""
        match self:
            case Precision.BF16:
                return "bfloat16, with float32 master weights"
            case Precision.FP32:
                return "float32"
            case Precision.AUTO:
                return "bfloat16 on a GPU, float32 on a CPU"


class Recomputation(StrEnum):
    """What the backward pass computes again, so that it need not be kept from the forward pass."""

    AUTO = "Auto"  # the least that lets the training fit the GPU
    NONE = "None"
    SELECTIVE = "Selective"
    FULL = "Full"

    @property
    def words(self) -> str:
        """What is computed again, for who reads a plan or a log."""
        match self:
            case Recomputation.NONE:
                return "nothing"
            case Recomputation.SELECTIVE:
                return "MLPs"
            case Recomputation.FULL:
                return "layers"
            case Recomputation.AUTO:
                return "what the GPU needs"


LEAST_FIRST = (Recomputation.NONE, Recomputation.SELECTIVE, Recomputation.FULL)
"""What can be recomputed, the quickest first: each needs less memory than the one before."""


_PARTIAL = "%d is not divisible by microBatchSize (%d)"
_WARMS_TOO_LONG = "%d must be less than steps (%d), at most: %d; the default applies if it is not set"


def _whole_micro_batches(training: "TrainingConfig") -> str | None:
    batch, micro = training.global_batch_size, training.micro_batch_size
    return indivisible(_PARTIAL, (batch, micro), batch, micro) if batch % micro else None


def _warms_up_before_the_end(training: "TrainingConfig") -> str | None:
    warmup, steps = training.warmup_steps, training.steps
    return _WARMS_TOO_LONG % (warmup, steps, steps - 1) if 1 <= steps <= warmup else None


class TrainingConfig(ConfigModel):
    """What both training phases share."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "globalBatchSize",
            _whole_micro_batches,
            cel="self.globalBatchSize < 1 || self.microBatchSize < 1 || "
            "self.globalBatchSize % self.microBatchSize == 0",
            message=cel_indivisible(
                _PARTIAL, ("self.globalBatchSize", "self.microBatchSize"), "self.globalBatchSize", "self.microBatchSize"
            ),
        ),
        Rule(
            "warmupSteps",
            _warms_up_before_the_end,
            cel="self.steps < 1 || self.warmupSteps < self.steps",
            message=cel_format(_WARMS_TOO_LONG, "self.warmupSteps", "self.steps", "self.steps - 1"),
        ),
        Rule.of(
            "minLearningRate",
            "must not be above learningRate, the peak of the schedule",
            lambda training: training.min_learning_rate <= training.learning_rate,
            "self.learningRate <= 0.0 || self.minLearningRate <= self.learningRate",
        ),
    )

    steps: int = Field(ge=1, le=10_000_000, description="Number of optimizer steps.")
    global_batch_size: int = Field(
        default=1152, ge=1, le=1_048_576, description="Number of sequences in one optimizer step, over all ranks."
    )
    micro_batch_size: Annotated[int, Operational()] = Field(
        default=1,
        ge=1,
        le=65_536,
        description="Number of sequences in one forward pass of one rank. Lower it to save memory.",
    )
    learning_rate: float = Field(default=1e-4, gt=0, le=1, description="Peak learning rate, reached after warm-up.")
    min_learning_rate: float = Field(
        default=1e-5, ge=0, le=1, description="Learning rate at the end of the cosine schedule."
    )
    warmup_steps: int = Field(
        default=40, ge=0, le=10_000_000, description="Number of linear warm-up steps. Must be less than steps."
    )
    weight_decay: float = Field(default=0.1, ge=0, le=10, description="Weight decay of AdamW.")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay rate of AdamW's first moment.")
    adam_beta2: float = Field(default=0.95, ge=0, lt=1, description="Decay rate of AdamW's second moment.")
    clip_gradient: float = Field(
        default=1.0, ge=0, le=1e6, description="Maximum global norm of the gradients. 0 turns clipping off."
    )
    seed: int = Field(default=1234, ge=0, le=2**31 - 1, description="Seed for the order of the training sequences.")
    precision: Precision = Field(
        default=Precision.AUTO,
        description="Arithmetic of the forward and backward pass: "
        "BF16 or FP32. Auto is BF16 on GPU and FP32 on CPU. Master weights are always FP32.",
    )
    deterministic: Annotated[bool, Operational()] = Field(
        default=False,
        description="Whether to use deterministic GPU kernels, for bit-exact resume. Training on CPU "
        "is always deterministic.",
    )
    activation_recomputation: Annotated[Recomputation, Operational()] = Field(
        default=Recomputation.AUTO,
        description="What the backward pass computes again instead of keeping it: None; Selective, the MLPs; or Full, "
        "whole layers, which takes least memory and about a fifth more time. Auto takes the first of these with which "
        "the training fits the GPU, and None on CPU. The result is the same.",
    )
    checkpoint_interval: Annotated[int, Operational()] = Field(
        default=100, ge=1, le=10_000_000, description="Steps between checkpoints."
    )
    keep_checkpoints: Annotated[int, Operational()] = Field(
        default=2, ge=1, le=1000, description="Number of checkpoints to keep while the phase runs."
    )
    validation_interval: Annotated[int, Operational()] = Field(
        default=100, ge=1, le=10_000_000, description="Steps between validations."
    )
    log_interval: Annotated[int, Operational()] = Field(
        default=1, ge=1, le=100_000, description="Steps between progress lines."
    )

    def validates_after(self, step: int) -> bool:
        """Whether the validation loss is measured after this step, though it is not the last one."""
        return step % self.validation_interval == 0

    @property
    def computes_also_in(self) -> tuple[str, ...]:
        """Phases beside its own that compute something for it, in its precision."""
        return ()


VALIDATION_LOSS = "validationLoss"
"""What `keepBest` calls the figure that is no task."""

EXPORTS_KEPT = 3


class FinetuneConfig(TrainingConfig):
    """Teacher correction: a short training of the teacher on the dataset that its students will learn from.

    Defaults follow Minitron in practice (arXiv 2408.11796): a fifth of the peak learning rate and 120 warm-up steps.
    """

    learning_rate: float = Field(default=2e-5, gt=0, le=1, description="Peak learning rate, reached after warm-up.")
    min_learning_rate: float = Field(
        default=2e-6, ge=0, le=1, description="Learning rate at the end of the cosine schedule."
    )
    warmup_steps: int = Field(
        default=120, ge=0, le=10_000_000, description="Number of linear warm-up steps. Must be less than steps."
    )


class DistillConfig(TrainingConfig):
    """Knowledge distillation from the (corrected) teacher; by default forward KL on logits at temperature 1."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *TrainingConfig.rules,
        Rule.of(
            "losses",
            "names a type of loss twice; give it once, with the weight of both",
            lambda distill: not twice(distill.losses),
            "self.losses.all(loss, self.losses.exists_one(other, other.type == loss.type))",
        ),
        Rule.of(
            "losses",
            f"Auto chooses among {', '.join(CHOSEN_BY_AUTO)}, and one of these is named beside it; remove it, or name "
            "all losses in place of Auto",
            lambda distill: is_clear(distill.losses),
            "!self.losses.exists(loss, loss.type == 'Auto') || "
            f"!self.losses.exists(loss, loss.type in {CHOSEN_BY_AUTO})",
        ),
        Rule.of(
            "losses",
            "balance: Dynamic scales a loss to those on logits, and none of these is here with balance: Fixed; add "
            "LogitsKL, or set Fixed",
            lambda distill: is_balanced(distill.losses),
            "self.losses.all(loss, loss.balance == 'Fixed') || "
            f"self.losses.exists(loss, loss.balance == 'Fixed' && loss.type in {ON_LOGITS})",
        ),
        *cached_rules(),
        Rule.of(
            "tasks",
            "are measured every taskInterval steps; set it, or remove tasks",
            lambda distill: distill.task_interval is not None or not distill.tasks,
            "has(self.taskInterval) || !has(self.tasks) || size(self.tasks) == 0",
        ),
        Rule.of(
            "keepBest",
            "names a task, and tasks are measured every taskInterval steps; set it, or keepBest: validationLoss",
            lambda distill: distill.task_interval is not None or distill.best_task is None,
            f"has(self.taskInterval) || !has(self.keepBest) || self.keepBest == '{VALIDATION_LOSS}'",
        ),
        Rule.of(
            "keepBest",
            "names a task that is not among tasks; add it there, or remove tasks to measure all of evaluate.tasks",
            lambda distill: not distill.tasks or distill.best_task is None or distill.best_task in distill.tasks,
            "!has(self.tasks) || size(self.tasks) == 0 || !has(self.keepBest) || "
            f"self.keepBest == '{VALIDATION_LOSS}' || self.keepBest in self.tasks",
        ),
        Rule.of(
            "exportKeep",
            "is of the exports that exportEvery asks for; set exportEvery, or remove exportKeep",
            lambda distill: distill.export_every is not None or distill.export_keep == EXPORTS_KEPT,
            f"has(self.exportEvery) || self.exportKeep < 1 || self.exportKeep == {EXPORTS_KEPT}",
        ),
    )

    losses: list[LossField] = Field(
        default=[LogitsKL()],
        min_length=1,
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
        description="Losses that the student is trained to lower. The training loss is the sum of each one's mean "
        "over tokens times its weight. The published recipe is LogitsKL alone, at temperature 1. Auto is LogitsKL, "
        "with HiddenStates and Embeddings if half of the layers or more are cut.",
    )
    validation_interval: Annotated[int, Operational(unless="keeps_lowest_loss")] = Field(
        default=100,
        ge=1,
        le=10_000_000,
        description="Steps between validations. With keepBest: validationLoss, a change of it distils again.",
    )
    task_interval: Annotated[int | None, Operational(unless="best_task")] = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Steps between scorings of the student by tasks: before the first step, every so many steps and "
        "after the last. Training stands still meanwhile, and rank 0 holds a second copy of the student. The weights "
        "are rounded to export.dtype, as evaluate scores them. Scores are in the log, the progress, the report and "
        "TensorBoard, beside the losses. Not measured if not set.",
    )
    tasks: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=128)]],
        Field(max_length=MOST_TASKS),
        Operational(),
    ] = Field(
        default=[],
        description="Names of the tasks of evaluate.tasks that are scored every taskInterval steps. Default: all.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    keep_best: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        examples=[VALIDATION_LOSS],
        description="Figure by which the best weights are chosen, which export then exports. validationLoss: those of "
        "the step with the lowest validation loss (measured every validationInterval steps and after the last). The "
        "name of a task: those with the best score in it (measured every taskInterval steps and after the last); of "
        "equal scores the lower validation loss, then the earlier step. With a task, a change of taskInterval, "
        "export.dtype, evaluate.batchSize or of that task in evaluate.tasks distils again; a change of other tasks "
        "does not. Default: the weights after the last step. status.students[].bestStep and bestScore show which "
        "weights were kept.",
    )

    export_every: Annotated[int | None, Operational()] = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Steps between exports of the student while it is distilled: each is a Hugging Face checkpoint of "
        "export.dtype, in work/<fingerprint>/exports/step-<step> of the store, where <fingerprint> is that of the step "
        "in status.steps. It is not compared with what was trained, as export does at the end. A student that is "
        "already in the store is not distilled again for it. None if not set.",
    )
    export_keep: Annotated[int, Operational()] = Field(
        default=EXPORTS_KEPT, ge=1, le=1000, description="Number of these checkpoints to keep, the newest."
    )

    teacher_logits: TeacherLogits = Field(
        default=TeacherLogits.LIVE,
        description="Where the teacher's logits come from. Live: the teacher runs beside the student in every step. "
        "Cached: the step logits-<student> runs the teacher once over the sequences of the training and writes its "
        "cachedTopK likeliest tokens after each token, with their log-probabilities and that of all others together. "
        "Distillations read these, with no teacher in memory: also restarts, other runs in the storage, and students "
        "that share steps x globalBatchSize, seed, precision and the temperature of LogitsKL. They do not depend on "
        "micro-batch and ranks, but phases.distill.parallelism has to be 1, and each GPU of that step holds the whole "
        "teacher. LogitsKL then counts all tokens that are not kept as one. Only for losses that need "
        f"no more: {', '.join(OF_LIKELIEST)}.",
    )
    cached_top_k: int = Field(
        default=TOP_K,
        ge=1,
        le=MOST_KEPT,
        description="Number of the teacher's likeliest tokens that teacherLogits: Cached keeps after each token, at 5 "
        "bytes each. status.students[].figures shows their share of the probability, logits.massKept.",
    )

    @property
    def cached(self) -> bool:
        """Whether the teacher's logits are read from an artifact."""
        return self.teacher_logits == TeacherLogits.CACHED  # rules are asked of what was not read yet, too

    @property
    def computes_also_in(self) -> tuple[str, ...]:
        return ("logits",) if self.cached else ()

    @property
    def likeliest(self) -> int | None:
        """Tokens of which it reads what the teacher gives them; None where the teacher itself is there."""
        return self.cached_top_k if self.cached else None

    @property
    def best_task(self) -> str | None:
        """The task whose score chooses the weights that are kept."""
        return self.keep_best if self.keep_best != VALIDATION_LOSS else None

    @property
    def keeps_lowest_loss(self) -> bool | None:
        """True where the validation loss chooses them, else None (see `Operational`)."""
        return self.keep_best == VALIDATION_LOSS or None

    def validates_after(self, step: int) -> bool:
        return super().validates_after(step) or (self.best_task is not None and self.scores_after(step))

    def exports_after(self, step: int) -> bool:
        """Whether the weights after this step are exported, if it is not the last one."""
        return self.export_every is not None and step > 0 and step % self.export_every == 0

    def scores_after(self, step: int) -> bool:
        """Whether tasks are scored after this step, though it is not the last one."""
        return self.task_interval is not None and step % self.task_interval == 0

    def shortened(self, steps: int) -> "DistillConfig":
        """A distillation of so few steps, which warms up for a tenth of them at most, and measures and keeps nothing on
        its way.
        """
        same = {name: getattr(self, name) for name in (*TrainingConfig.model_fields, "losses")}
        warmup = min(self.warmup_steps, steps // 10)
        return DistillConfig(**{**same, "steps": steps, "warmup_steps": warmup, "validation_interval": steps})


class ValidationConfig(ConfigModel):
    """How validation loss is measured, everywhere it is: teacher, corrected teacher, pruned and distilled student."""

    samples: int = Field(
        default=256,
        ge=1,
        le=1_048_576,
        description="Number of validation sequences for every validation loss. They are always the same ones. If the "
        "split has fewer, all are used.",
    )
