"""The training loop of both training phases: any loss, on any layout of ranks.

Stopping: SIGTERM only raises a flag. A collective of each step, and of each batch of a validation, tells all ranks of
it, and they checkpoint after the same step; a validation that was broken off is made when the run goes on. A loss or
gradient norm that isn't finite stops the run before the optimizer touches the weights; a validation loss that isn't
finite stops it, too. Where a rank dies, its peers' next collective fails; they make no other.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
import torch.distributed as dist

from compression_pipeline.config import TrainingConfig
from compression_pipeline.context import Context
from compression_pipeline.engines import Extension
from compression_pipeline.engines.history import History, Scalars, StepEntry, ValidationEntry
from compression_pipeline.engines.schedule import learning_rate
from compression_pipeline.errors import Diverged, Interrupted, PhaseError
from compression_pipeline.sizing import find_gpu
from compression_pipeline.text.batches import Batch, TrainingData, ValidationLoss

from .checkpoint import Checkpoints
from .loss_function import LossFunction
from .optimizer import Optimizer
from .runtime import Runtime

if TYPE_CHECKING:
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.transformer.module import MegatronModule


SILENCE_SECONDS = 60.0
"""Longest time of training without a line of progress, whatever logInterval says."""


@dataclass(frozen=True)
class Figures:
    """What one step computed, the same on all ranks."""

    loss: float
    gradient_norm: float
    stop: bool


def train(
    model: "MegatronModule",
    *,
    loss: LossFunction,
    settings: TrainingConfig,
    data: TrainingData,
    validate: Callable[[], ValidationLoss],
    check: Callable[[float], None],
    flops_per_token: float,
    runtime: Runtime,
    context: Context,
    checkpoints: Checkpoints,
    finished: Callable[[Optimizer], None] = lambda optimizer: None,
    on_step: Callable[[int, History, Optimizer], None] = lambda step, history, optimizer: None,
    extension: Extension | None = None,
) -> History:
    """Train `model` in place, from the newest checkpoint if there is one; every rank calls it.

    Args:
        validate: measures the validation loss, or raises Interrupted on all ranks; called before the first step, every
            `validation_interval` steps and after the last.
        check: looks at the validation loss before the first step, and raises UserError where the model that is to be
            trained computes no number.
        flops_per_token: operations that a trained token needs, for the utilization (`sizing.training_flops`).
        checkpoints: where the state is kept. They stay; remove them once the result is published.
        finished: called on every rank after the last step, while the optimizer and its float32 weights are there.
        on_step: told of each step, with the weights after it (see `engines.Training`).
        extension: more steps, where the validation loss after the last one asks for them.

    Raises:
        Diverged: the loss, the gradient norm or the validation loss is not finite.
        Interrupted: told to stop; the state is in a checkpoint.
    """
    loop = _Loop(
        model,
        loss,
        settings,
        data,
        validate,
        check,
        flops_per_token,
        runtime,
        context,
        checkpoints,
        on_step,
        extension,
    )
    history = loop.run()
    finished(loop.optimizer)
    return history


class _Loop:
    def __init__(
        self,
        model: "MegatronModule",
        loss: LossFunction,
        settings: TrainingConfig,
        data: TrainingData,
        validate: Callable[[], ValidationLoss],
        check: Callable[[float], None],
        flops_per_token: float,
        runtime: Runtime,
        context: Context,
        checkpoints: Checkpoints,
        on_step: Callable[[int, History, Optimizer], None],
        extension: Extension | None,
    ) -> None:
        self._model = model
        self._loss = loss
        self._settings = settings
        self._data = data
        self._validate = validate
        self._check = check
        self._runtime = runtime
        self._context = context
        self._checkpoints = checkpoints
        self._on_step = on_step
        self._extension = extension
        self._history = History(settings.steps)
        self._scalars: Scalars | None = None
        self._saved: int | None = None
        self._tokens_per_step = settings.global_batch_size * data.sequence_length
        self._flops_per_token = flops_per_token / runtime.world_size
        gpu = find_gpu(torch.cuda.get_device_name(runtime.device)) if _bf16_gpu(runtime) else None
        self._peak = gpu.peak_flops if gpu is not None else None
        self._wrapped = data_parallel(model)
        self.optimizer = Optimizer(self._wrapped, settings, runtime)

    def run(self) -> History:
        settings, first = self._settings, 0
        for sentence in self._data.remarks(settings.steps):
            self._context.events.warning(sentence)
        if settings.warmup_steps >= settings.steps:
            self._context.events.warning(
                f"warmupSteps: {settings.warmup_steps} of {settings.steps} steps are warm-up: the learning rate only "
                "rises; lower it, or train longer"
            )
        resumed = self._checkpoints.load(self._model, self.optimizer)
        if resumed is not None:
            first, self._history, self._saved = resumed.step, resumed.history, resumed.step
            self._context.events.info(f"goes on from step {first} ({resumed.path})")
        if self._runtime.rank == 0:
            self._scalars = Scalars(
                self._context.folder, self._history, flops_per_token=self._flops_per_token, peak=self._peak
            )
        try:
            if self._validation_due(first) and first not in [entry.step for entry in self._history.validation]:
                self._measure(first)
            self._tell(first)
            self._extend(first)
            self._wrapped.train()
            clock = _Clock(first)
            for step in self._steps(first):
                started = time.perf_counter()
                figures = self._step(step)
                self._record(step, figures, time.perf_counter() - started, clock)
                done = step + 1
                if figures.stop:
                    self._stop(done)
                if self._validation_due(done):
                    self._measure(done)
                self._tell(done)
                self._extend(done)
                if done in (settings.steps, self._history.total_steps) or done % settings.checkpoint_interval == 0:
                    self._save(done)
        finally:
            if self._scalars is not None:
                self._scalars.close()
        return self._history

    def _steps(self, first: int) -> Iterator[int]:
        """The steps that are left, counted from 0; the last of them may add some."""
        step = first
        while step < self._history.total_steps:
            yield step
            step += 1

    def _extend(self, done: int) -> None:
        """Go on after the last step where its validation loss asks for that. Who resumes there decides alike."""
        extension, history, steps = self._extension, self._history, self._settings.steps
        if extension is None or done != steps or history.total_steps > steps:
            return
        if extension.wanted(history):
            loss = history.validation[-1].loss
            history.total_steps += extension.steps
            self._context.events.info(
                f"the validation loss after step {steps} is {loss:.4f}, which misses accept: trains on for "
                f"{extension.steps} steps at minLearningRate ({self._settings.min_learning_rate:g})"
            )

    def _step(self, step: int) -> Figures:
        """Forward, backward, and the optimizer's step unless something isn't finite."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self._wrapped.zero_grad_buffer()
        self.optimizer.zero_gradients()
        results = get_forward_backward_func()(
            forward_step_func=self._forward_step,
            data_iterator=cast("Any", iter(self._data.batches(step))),
            model=self._wrapped,
            num_microbatches=self._data.micro_batches,
            seq_length=self._data.sequence_length,
            micro_batch_size=self._data.micro_batch_size,
            forward_only=False,
            adjust_tensor_shapes_fn=self._loss.shapes if self._runtime.layout.pipeline > 1 else None,
        )
        norm = self.optimizer.gradient_norm()
        losses = [result["loss"] for result in results]
        figures = self._agree(torch.stack(losses).mean() if self._runtime.last_stage else None, norm)
        if not (math.isfinite(figures.loss) and math.isfinite(norm)):
            what = "gradient norm" if math.isfinite(figures.loss) else "loss"
            value = norm if math.isfinite(figures.loss) else figures.loss
            self._refuse(what, value, f"at step {step + 1}", f"the weights of step {step} were left alone")
        self.optimizer.step(learning_rate(step, self._settings), norm)
        return figures

    def _forward_step(
        self, batches: Iterator[Batch], model: torch.nn.Module
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]]:
        batch = next(batches)

        def reduce(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            loss = self._loss.reduce(output, batch)
            # A copy: Megatron divides the loss itself, in place, by the number of micro batches.
            return loss, {"loss": loss.detach().clone()}

        return self._loss.forward(model, batch), reduce

    def _agree(self, loss: torch.Tensor | None, norm: float) -> Figures:
        """The mean loss, and whether any rank was told to stop: one collective for both, over all ranks.

        `loss`: this rank's; None where another pipeline stage computes it.
        """
        shared = torch.zeros(2, device=self._runtime.device)
        if loss is not None:
            shared[0] = loss
        shared[1] = float(self._context.stop_requested())
        dist.all_reduce(shared)
        total, stops = shared.tolist()
        return Figures(total / self._runtime.layout.per_stage, norm, stops > 0)

    def _refuse(self, what: str, value: float, when: str, state: str) -> NoReturn:
        newest = self._checkpoints.newest()
        kept = f"the checkpoint {newest} is kept" if newest else "there is no checkpoint yet"
        raise Diverged(
            f"the {what} is {value} {when}; {state} and {kept}; lower learningRate, raise warmupSteps, or look at the "
            "data"
        )

    def _record(self, step: int, figures: Figures, seconds: float, clock: "_Clock") -> None:
        settings, done, total = self._settings, step + 1, self._history.total_steps
        entry = StepEntry(
            step=done,
            loss=figures.loss,
            learning_rate=learning_rate(step, settings),
            gradient_norm=figures.gradient_norm,
            tokens_per_second=self._tokens_per_step / seconds,
        )
        self._history.add_step(entry)
        if self._scalars is not None:
            self._scalars.add_step(entry)
        clock.steps += 1
        clock.busy += seconds
        # A job that says nothing for long counts as hung, however seldom its user wants to hear of it.
        if done % settings.log_interval == 0 or done == total or clock.busy >= SILENCE_SECONDS:
            rate = clock.steps * self._tokens_per_step / clock.busy
            self._context.events.progress(
                done,
                total,
                loss=entry.loss,
                tokens_per_second=round(rate, 1),
                eta_seconds=clock.remaining(done, total),
                learning_rate=entry.learning_rate,
                gradient_norm=entry.gradient_norm,
                scores=self._history.scores_at() or None,
                teraflops_per_device=round(rate * self._flops_per_token / 1e12, 3),
                model_flops_utilization=rate * self._flops_per_token / self._peak if self._peak else None,
            )
            clock.steps, clock.busy = 0, 0.0

    def _validation_due(self, step: int) -> bool:
        last = (self._settings.steps, self._history.total_steps)
        return self._settings.validates_after(step) or step in last

    def _measure(self, step: int) -> None:
        try:
            measured = self._validate()
        except Interrupted:
            if step > 0:
                self._stop(step)
            raise
        loss = measured.loss
        if step == 0:
            self._check(loss)
        elif not math.isfinite(loss):
            self._refuse("validation loss", loss, f"after step {step}", "the training ends there")
        entry = ValidationEntry(step, loss, measured.by_source)
        self._history.add_validation(entry)
        if self._scalars is not None:
            self._scalars.add_validation(entry)
        self._context.events.metric("validationLoss", entry.loss, step)

    def _tell(self, step: int) -> None:
        """Tell who watches of the step, and TensorBoard of the scores that it adds."""
        known = len(self._history.scores)
        try:
            self._on_step(step, self._history, self.optimizer)
        except Interrupted:
            if step > 0:
                self._stop(step)
            raise
        except PhaseError:  # the same on every rank, and nothing that the training did
            if step > 0:
                self._save(step)
            raise
        if self._scalars is not None:
            for entry in self._history.scores[known:]:
                self._scalars.add_score(entry)

    def _stop(self, step: int) -> NoReturn:
        self._save(step)
        raise Interrupted(f"was told to stop (SIGTERM) after step {step}; it is in a checkpoint")

    def _save(self, step: int) -> None:
        if self._saved != step:
            self._checkpoints.save(step, self._model, self.optimizer, self._history)
            self._saved = step


class _Clock:
    """Time since the loop began, and since the last progress line."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._began = time.monotonic()
        self.steps = 0
        self.busy = 0.0

    def remaining(self, done: int, total: int) -> float:
        """Seconds until the end, at the pace so far, validation and checkpoints included."""
        return (time.monotonic() - self._began) / (done - self._first) * (total - done)


def _bf16_gpu(runtime: Runtime) -> bool:
    return runtime.on_gpu and runtime.dtype is torch.bfloat16


def data_parallel(model: "MegatronModule") -> "DistributedDataParallel":
    """The model in Megatron's data parallelism: gradients are summed in float32, in one contiguous buffer."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    config = cast("Any", model.config)
    config.finalize_model_grads_func = finalize_model_grads
    return DistributedDataParallel(
        config, DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True), model
    )
