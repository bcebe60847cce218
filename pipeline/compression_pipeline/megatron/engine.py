"""Megatron-Core and ModelOpt as an `Engine`."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from compression_pipeline.config import (
    Architecture,
    Axis,
    EngineJob,
    ImportanceConfig,
    LossConfig,
    Precision,
    Recomputation,
)
from compression_pipeline.context import Context
from compression_pipeline.engines import State, Training
from compression_pipeline.engines.history import History
from compression_pipeline.huggingface import conversion
from compression_pipeline.importance import Choice, Samples, Scores, measure, scorers
from compression_pipeline.sizing import training_flops
from compression_pipeline.text.batches import Batch, ValidationData, ValidationLoss

from . import gathering, stages
from .alone import on_rank_0
from .model import build
from .modelopt import import_modelopt
from .runtime import Runtime, free, import_megatron, runtime

if TYPE_CHECKING:
    from .device_memory import Planned
    from .optimizer import Optimizer

Value = TypeVar("Value")


@contextmanager
def start(
    job: EngineJob, context: Context, *, precision: Precision, deterministic: bool, seed: int
) -> Iterator["MegatronEngine"]:
    """See `engines.Start`."""
    with runtime(job, precision=precision, deterministic=deterministic, seed=seed, tell=context.events.info) as current:
        yield MegatronEngine(current, context)


def preload() -> None:
    """See `engines.preload`."""
    import_megatron(gpu=False)
    import_modelopt()
    for module in ("distillation", "merging", "minitron", "training", "validation"):
        import_module(f"{__package__}.{module}")


class MegatronEngine:
    """Models are GPTModels, states their parameters by Megatron's names.

    What imports Megatron is imported by the methods: see `runtime`.
    """

    def __init__(self, runtime: Runtime, context: Context) -> None:
        """An engine in a runtime that is there."""
        self._runtime = runtime
        self._context = context

    @property
    def rank(self) -> int:
        return self._runtime.rank

    @property
    def world_size(self) -> int:
        return self._runtime.world_size

    @property
    def data_rank(self) -> int:
        return self._runtime.data_rank

    @property
    def data_size(self) -> int:
        return self._runtime.data_size

    @property
    def device(self) -> torch.device:
        return self._runtime.device

    @property
    def precision(self) -> Precision:
        return self._runtime.precision

    def agree(self, value: Value) -> Value:
        told = [value]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def any_rank(self, value: bool) -> bool:
        shared = torch.tensor(float(value), device=self.device)
        dist.all_reduce(shared)
        return shared.item() > 0

    def on_rank_0(self, work: Callable[[Callable[[], None]], Value]) -> Value:
        return on_rank_0(work, self._runtime, self._context)

    def free(self) -> None:
        free(self._runtime)

    def build(self, architecture: Architecture, *, sequence_length: int, exact: bool = False) -> Any:
        place = dataclasses.replace(self._runtime, dtype=torch.float32) if exact else self._runtime
        return build(architecture, place, sequence_length=sequence_length)

    def load(self, model: Any, architecture: Architecture, folder: Path) -> None:
        conversion.load_into(model, architecture, folder, self._runtime.share)

    def read(self, architecture: Architecture, folder: Path) -> State:
        if self.rank:
            return {}
        return dict(conversion.to_megatron(architecture, conversion.CheckpointReader(folder)))

    def fill(self, model: Any, state: State, dtype: torch.dtype) -> None:
        with torch.no_grad():
            stages.distribute(state, dict(conversion.named_weights(model)), dtype, self._runtime, gated=_gated(model))

    def state(self, model: Any) -> State:
        return self._whole(model, conversion.named_weights(model))

    def _whole(self, model: Any, weights: Iterable[tuple[str, Tensor]]) -> State:
        """What all ranks have of these weights, on rank 0."""
        return stages.collect(gathering.whole(weights, self._runtime, gated=_gated(model)), self._runtime)

    def tensors(self, state: State, architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
        return conversion.to_huggingface(architecture, lambda name: state[name].detach())

    def validate(self, model: Any, data: ValidationData, *, sequences_per_pass: int) -> ValidationLoss:
        from .validation import validation_loss

        return validation_loss(model, data, self._runtime, self._context, batch_size=sequences_per_pass)

    def logits(self, model: Any, batch: Batch) -> Tensor:
        found = stages.forward(model.eval(), batch, self._runtime)
        if found is not None:
            found = gathering.all_words(found, self._runtime)
        return stages.from_last(found, (*batch.tokens.shape, model.vocab_size), self._runtime)

    def measure(
        self,
        model: Any,
        architecture: Architecture,
        samples: Samples,
        importance: ImportanceConfig,
        axes: Collection[Axis],
    ) -> Scores:
        return measure(model, architecture, samples, scorers(importance, axes), importance.aggregation)

    def cut(self, model: Any, teacher: Architecture, student: Architecture, choice: Choice, *, divisor: int) -> Any:
        from .merging import merge_heads
        from .minitron import cut

        if choice.merged is not None:
            merge_heads(model, teacher, choice.merged)
        cut(model, teacher, student, choice, divisor=divisor)
        return model

    def train(self, model: Any, training: Training) -> History:
        from .device_memory import planned
        from .loss_function import LanguageModelLoss

        return self._train(
            model,
            training,
            planned=planned(training, self._runtime),
            loss=LanguageModelLoss(),
            measured=model,
            flops_per_token=training_flops(training.architecture, training.data.sequence_length),
        )

    def distill(
        self, student: Any, teacher: Any | None, training: Training, *, of: Architecture, losses: Sequence[LossConfig]
    ) -> tuple[History, State]:
        from .device_memory import planned
        from .distillation import CachedLoss, DistillationLoss, StudentAlone, combine, of_student
        from .objective import Objective

        small, length = training.architecture, training.data.sequence_length
        objective = Objective.of(losses, of, small, self._runtime, seed=training.settings.seed)
        if teacher is None:
            model, loss, measured = student, CachedLoss(student, objective), student
        else:
            model = combine(student, teacher, objective)
            loss, measured = DistillationLoss(model, objective), StudentAlone(model)
        state: dict[str, Tensor] = {}

        def weights(optimizer: "Optimizer") -> State:
            return self._whole(model, of_student(optimizer.weights().items()).items())

        history = self._train(
            model,
            training,
            planned=planned(training, self._runtime, teacher=of, losses=losses),
            loss=loss,
            measured=measured,
            weights=lambda: self._whole(model, of_student(conversion.named_weights(model)).items()),
            flops_per_token=training_flops(small, length, of if teacher is not None else None),
            finished=lambda optimizer: state.update(weights(optimizer)),
            on_step=lambda step, history, optimizer: training.on_step(step, history, lambda: weights(optimizer)),
        )
        return history, state

    def _train(
        self,
        model: Any,
        training: Training,
        *,
        planned: "Planned",
        measured: Any,
        weights: Callable[[], State] | None = None,
        **told: Any,
    ) -> History:
        """`planned`: its memory; `measured`: what the validation loss is of; `weights`: its own, if they are not all of
        the model's.
        """
        from .checkpoint import Checkpoints
        from .device_memory import explained
        from .recomputation import recompute
        from .training import train

        settings, data, again = training.settings, training.data, planned.recomputation
        recompute(model, again)
        if again is not Recomputation.NONE:
            asked = settings.activation_recomputation
            self._context.events.info(
                f"the backward pass computes {again.words} again (activationRecomputation: {asked})"
            )
        with explained(planned):
            return train(
                model,
                settings=settings,
                data=data,
                validate=lambda: self.validate(measured, training.validation, sequences_per_pass=data.micro_batch_size),
                check=lambda loss: training.check(loss, weights or (lambda: self.state(model))),
                runtime=self._runtime,
                context=self._context,
                extension=training.extension,
                checkpoints=Checkpoints(
                    self._context, training.fingerprint, self._runtime, keep=settings.keep_checkpoints
                ),
                **told,
            )


def _gated(model: Any) -> bool:
    return model.config.gated_linear_unit
