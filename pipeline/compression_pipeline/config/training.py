"""Settings of the training phases: teacher correction (finetune) and distillation."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from .base import ConfigModel, Operational, Rule, cel_format, cel_indivisible, indivisible
from .losses import CHOSEN_BY_AUTO, ON_LOGITS, LogitsKL, LossField, is_balanced, is_clear, twice


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


class KeepBest(StrEnum):
    """By what figure the best of a training's weights are chosen."""

    VALIDATION_LOSS = "validationLoss"


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
    validation_interval: Annotated[int, Operational(unless="keep_best")] = Field(
        default=100,
        ge=1,
        le=10_000_000,
        description="Steps between validations. With keepBest, a change of it distils again.",
    )
    keep_best: KeepBest | None = Field(
        default=None,
        description="validationLoss keeps the weights of the step with the lowest validation loss of those that are "
        "validated (every validationInterval steps and the last), and export exports these. Default: the weights "
        "after the last step. status.students[].bestStep tells the step.",
    )


class ValidationConfig(ConfigModel):
    """How validation loss is measured, everywhere it is: teacher, corrected teacher, pruned and distilled student."""

    samples: int = Field(
        default=256,
        ge=1,
        le=1_048_576,
        description="Number of validation sequences for every validation loss. They are always the same ones. If the "
        "split has fewer, all are used.",
    )
