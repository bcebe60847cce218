"""What the phases ask of an engine: it holds models, computes with them, cuts and trains them.

Models come from folders of Hugging Face checkpoints and go into such folders as named tensors. Between the two a model
is the engine's own business: phases only hand it back. The text (`text.batches`), the losses, what a student keeps, the
artifacts and their keys are the phases'.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from compression_pipeline.config import (
    Architecture,
    Axis,
    EngineJob,
    ImportanceConfig,
    LossConfig,
    Precision,
    TrainingConfig,
)
from compression_pipeline.context import Context

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from compression_pipeline.importance import Choice, Samples, Scores
    from compression_pipeline.text.batches import Batch, TrainingData, ValidationData, ValidationLoss

    from .history import History

Value = TypeVar("Value")

Model: TypeAlias = Any
"""A model on the engine's device, which only its engine looks into."""

State: TypeAlias = "Mapping[str, Tensor]"
"""Whole weights by the engine's own names. Rank 0 has them all; another rank may have none."""


@dataclass(frozen=True)
class Extension:
    """More steps at the lowest learning rate, once, for a training that has not come far enough by its last step."""

    steps: int
    wanted: "Callable[[History], bool]"
    """Given the history up to the last step and its validation: a function of it alone, so who resumes decides alike.
    """


@dataclass(frozen=True)
class Training:
    """What a training is told, whatever is minimized."""

    fingerprint: str
    """Of the step, whose attempts share checkpoints."""
    settings: TrainingConfig
    architecture: Architecture
    """Of the model that is trained."""
    data: "TrainingData"
    """Its batches are a function of the step's number, so a training that goes on needs no state of it."""
    validation: "ValidationData"
    check: Callable[[float, Callable[[], State]], None]
    """Given the validation loss before the first step, and the weights that gave it: raises UserError if the model that
    is to be trained computes no number."""
    on_step: Callable[[int, "History", Callable[[], State]], None] = lambda step, history, weights: None
    """Told of each step (0: before the first) once the history has its validation, if there is one, and before any
    checkpoint holds that history: the step, the history, to which it may add scores, and what gives the float32 weights
    after that step. Every rank is told, and every rank asks for the weights or none does. Who resumes may be told of
    the step of its checkpoint once more. It may raise Interrupted on every rank: the training stops after that step.
    """
    extension: Extension | None = None
    """History.total_steps tells whether it was trained."""


class Engine(Protocol):
    """An engine that has started, on this rank. Every rank makes every call, unless it says otherwise.

    Precision is that of the forward and backward pass; `Start` is told which. Long calls tell their progress to the
    context of the job, and raise Interrupted on all ranks once any was told to stop.
    """

    @property
    def rank(self) -> int:
        """Among all ranks of the job. Rank 0 publishes."""
        ...

    @property
    def world_size(self) -> int:
        """All ranks of the job."""
        ...

    @property
    def data_rank(self) -> int:
        """Which part of the batch is this rank's."""
        ...

    @property
    def data_size(self) -> int:
        """Parts of the batch."""
        ...

    @property
    def device(self) -> "torch.device":
        """Where batches are to lie."""
        ...

    @property
    def precision(self) -> Precision:
        """The arithmetic that is used: BF16 or FP32."""
        ...

    def agree(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        ...

    def any_rank(self, value: bool) -> bool:
        """Whether it is true on any rank, on every rank."""
        ...

    def on_rank_0(self, work: Callable[[Callable[[], None]], Value]) -> Value:
        """What `work` gives on rank 0, on every rank; the others wait, for however long it takes.

        `work` is given a function to call often, at least each minute, which raises Interrupted once any rank was told
        to stop. What `work` raises every rank raises, as a PhaseError.
        """
        ...

    def free(self) -> None:
        """Give the memory back of models that were dropped."""
        ...

    def build(self, architecture: Architecture, *, sequence_length: int, exact: bool = False) -> Model:
        """A model whose weights are to be filled. `exact`: in float32, whatever the precision.

        Raises UserError if the engine has no such model, or the sequences are longer than it knows.
        """
        ...

    def load(self, model: Model, architecture: Architecture, folder: Path) -> None:
        """Fill a model from a Hugging Face checkpoint. Raises UserError if that is damaged or of other sizes."""
        ...

    def read(self, architecture: Architecture, folder: Path) -> State:
        """The weights of a Hugging Face checkpoint in its own type, in main memory. Rank 0 alone reads them."""
        ...

    def fill(self, model: Model, state: State, dtype: "torch.dtype") -> None:
        """Fill a model on every rank with rank 0's `state`, rounded to `dtype`."""
        ...

    def state(self, model: Model) -> State:
        """The model's weights, which need not be copies."""
        ...

    def tensors(self, state: State, architecture: Architecture) -> "Iterator[tuple[str, Tensor]]":
        """A state by the names of Hugging Face. Of this rank alone, which must have the state."""
        ...

    def validate(self, model: Model, data: "ValidationData", *, sequences_per_pass: int) -> "ValidationLoss":
        """Mean loss of the next token over all sequences of each of the data's sources (`ValidationData.loss`). Every
        rank gets it.
        """
        ...

    def logits(self, model: Model, batch: "Batch") -> "Tensor":
        """[sequences, sequence length, vocabulary], float32, of the same batch on every rank."""
        ...

    def measure(
        self,
        model: Model,
        architecture: Architecture,
        samples: "Samples",
        importance: ImportanceConfig,
        axes: Collection[Axis],
    ) -> "Scores":
        """How much each part of these axes matters, over the `samples` of all ranks, by the method named for each."""
        ...

    def cut(
        self, model: Model, teacher: Architecture, student: Architecture, choice: "Choice", *, divisor: int
    ) -> Model:
        """The student that keeps what `choice` says; `model` is used up. Weights are moved, never rounded, but query
        heads that others are merged into.

        `divisor`: what the student's widths are multiples of.
        """
        ...

    def train(self, model: Model, training: Training) -> "History":
        """Train a model in place on the next token, from the newest checkpoint of any attempt if there is one.

        Rank 0 writes the curves as it goes into the context's folder (`history.Scalars`). The first entry of the
        history's validations is of the model as it came.

        Raises:
            Diverged: the loss, the gradient norm or the validation loss is not finite.
            Interrupted: told to stop; the state is in a checkpoint.
        """
        ...

    def distill(
        self,
        student: Model,
        teacher: Model | None,
        training: Training,
        *,
        of: Architecture,
        losses: Sequence[LossConfig],
    ) -> "tuple[History, State]":
        """Train a student to match a teacher, which is of the architecture `of`; history and weights in float32.

        Without a teacher the batches have what is known of its logits (`Batch.teacher`), and the losses need no more
        (`LossConfig.of_likeliest`); asked of engines that say they do (`EngineInfo.learns_of_likeliest`).

        `losses` has no rules any more, but what they chose. Parameters of the losses are trained and checkpointed, and
        no part of the weights. Raises as `train` does.
        """
        ...


class Start(Protocol):
    """Starts an engine for a job; the table of engines names one for each."""

    def __call__(
        self, job: EngineJob, context: Context, *, precision: Precision, deterministic: bool, seed: int
    ) -> AbstractContextManager[Engine]:
        """The engine on this rank, which has met all others; everything is as before at the end of the block.

        Raises:
            UserError: this machine or image can't run it, or not in this precision.
            TransientError: the ranks could not meet.
        """
        ...
