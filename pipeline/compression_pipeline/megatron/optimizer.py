"""Megatron's distributed optimizer: AdamW whose state and float32 master weights are sharded over the ranks.

Its checkpoint is ours. Megatron's own formats assume the Adam of Transformer Engine or Apex: with torch's they fail on
its `step` tensors, or give all parameters one and the same, which then counts once per parameter. Here every rank
writes its piece of each parameter's moments as rectangles of a tensor of the parameter's whole shape, so that any other
layout of ranks can read them.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from compression_pipeline.config import TrainingConfig
from compression_pipeline.huggingface.conversion import named_weights

from . import private, shards
from .runtime import Runtime

if TYPE_CHECKING:
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer.optimizer import ChainedOptimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW with decoupled weight decay, none for biases and norms (Megatron's rule)."""

    def __init__(self, model: "DistributedDataParallel", settings: TrainingConfig, runtime: Runtime) -> None:
        """Take charge of the trainable parameters of `model`."""
        config = OptimizerConfig(
            optimizer="adam",
            lr=settings.learning_rate,
            min_lr=settings.min_learning_rate,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.adam_beta1,
            adam_beta2=settings.adam_beta2,
            clip_grad=settings.clip_gradient,
            bf16=runtime.dtype is torch.bfloat16,
            params_dtype=runtime.dtype,
            use_distributed_optimizer=True,
        )
        self._settings, self._runtime = settings, runtime
        self._model = model.module
        self._names = {parameter: name for name, parameter in named_weights(model.module)}
        self._own_names = {parameter: name for name, parameter in model.module.named_parameters()}
        with private.torchs_adamw():
            self._chained = cast("ChainedOptimizer", get_megatron_optimizer(config, cast("Any", [model])))
        self._parts = [cast("DistributedOptimizer", part) for part in self._chained.chained_optimizers]
        for part in self._parts:
            adam = part.optimizer
            if not isinstance(adam, torch.optim.AdamW):
                raise RuntimeError(f"{type(adam).__name__} keeps its state in a way that checkpoints don't know")
            for group in adam.param_groups:
                # One kernel for all parameters, on CPU and GPU; only the constructor's flag is out of reach.
                group["fused"], group["foreach"] = True, False

    def zero_gradients(self) -> None:
        """Forget the gradients of the master weights (the model's own are in the data-parallel buffer)."""
        self._chained.zero_grad()

    def gradient_norm(self) -> float:
        """Global L2 norm over all ranks of the gradients that `step` would apply, before clipping."""
        self._chained.prepare_grads()
        return float(self._chained.get_grad_norm())

    def step(self, rate: float, norm: float) -> None:
        """Clip the gradients, whose norm is `norm`, and update the weights at learning rate `rate`."""
        for part in self._parts:
            if self._settings.clip_gradient:
                parameters = cast("list[torch.Tensor]", part.get_parameters())
                clip_grad_by_total_norm_fp32(parameters, self._settings.clip_gradient, norm)
            for group in part.param_groups:
                group["lr"] = rate * group["lr_mult"]
                group["weight_decay"] = self._settings.weight_decay * group["wd_mult"]
        self._chained.step_with_ready_grads()

    def sharded_state(self) -> list[shards.Part]:
        """This rank's pieces of moments and master weights, for saving or to be loaded into.

        Moments that don't exist before the first step are made (zeros). Where a parameter is float32 it is its own
        master weight, and the model's state has it.
        """
        state: list[shards.Part] = []
        described = cast("Any", self._model).sharded_state_dict()
        for parameter, start, master, moments in self._shards():
            tensors = {name: moments[name] for name in MOMENTS}
            if parameter.dtype is not torch.float32:
                tensors["master"] = master.detach()
            for place in shards.parts_of(described[self._own_names[parameter]]):
                # The gate and the up projection are two parts of one parameter.
                first = (place.tensor.data_ptr() - parameter.data_ptr()) // parameter.element_size()
                for name, tensor in tensors.items():
                    state += place.pieces(f"optimizer.{name}.{place.key}", tensor.flatten(), start - first)
        return state

    def resume(self, step: int) -> None:
        """Count on after `step` steps, once the tensors of `sharded_state` were filled."""
        for _, _, master, moments in self._shards():
            moments["step"] = torch.tensor(float(step), dtype=torch.float32, device=master.device)

    def weights(self) -> dict[str, torch.Tensor]:
        """What this rank has of the trained weights, by their names in the whole model, in float32: the masters where
        the model's own are rounded.

        Every rank calls it, and where the model's weights are float32 every rank has them; masters are put together in
        the main memory of the rank alone that leads its data group.
        """
        pieces = {parameter: (start, master.detach()) for parameter, start, master, _ in self._shards()}
        found: dict[str, torch.Tensor] = {}
        for parameter, name in self._names.items():
            if not parameter.requires_grad:
                continue
            if parameter.dtype is torch.float32:
                found[name] = parameter.detach()  # a parameter itself holds on to its gradient's buffer
                continue
            whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
            if parameter in pieces:
                start, master = pieces[parameter]
                whole[start : start + master.numel()] = master.flatten()
            dist.reduce(whole, group=self._runtime.data_group, group_dst=0)
            if self._runtime.leads_data_group:
                found[name] = whole.view(parameter.shape).cpu()
        return found

    def _shards(self) -> Iterator[tuple[torch.nn.Parameter, int, torch.Tensor, dict[str, torch.Tensor]]]:
        """Per parameter that this rank has a piece of: it, the piece's start, master weights, torch's state of them."""
        for part in self._parts:
            for parameter, start, master in private.shards(part):
                moments = part.optimizer.state[master]
                if not moments:
                    moments["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
                    moments.update({name: torch.zeros_like(master) for name in MOMENTS})
                yield parameter, start, master, moments
