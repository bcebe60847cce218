"""What the engine leans on that Megatron-Core and ModelOpt don't promise: names, file formats, replaced functions.

All of it stands here, and holds for the pinned versions alone (`check_versions`). Who raises a pin reads this file.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.utils import cpp_extension

from compression_pipeline.errors import UserError

if TYPE_CHECKING:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

PINNED = {"megatron-core": "0.15.3", "nvidia-modelopt": "0.43.0"}
"""Versions whose private names these are."""

ADDED = ("_teacher_model.", "_loss_modules.")
"""Prefixes of the parameters that ModelOpt's distillation adds to a student: the teacher's, and the losses'."""

Criterion = _Loss
"""What ModelOpt takes for a distillation criterion."""


def check_versions() -> None:
    """Raises UserError where another version than the pinned one is installed; nothing is imported."""
    for name, pinned in PINNED.items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        if found.partition("+")[0] != pinned:  # a build's own suffix, as in 0.15.3+cu130, changes no name
            raise UserError(
                f"the engine uses private names of {name} {pinned} and finds {found}; use the image of this release, "
                "or install requirements/pipeline.txt"
            )


class _CpuTorch(ModuleType):
    """`torch` as those Megatron modules see it that write `device="cuda"`: here that means the CPU."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*size: Any, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.zeros(*size, **options)

    @staticmethod
    def tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        return torch.tensor(data, **options)


@contextlib.contextmanager
def cpu_adaptations() -> Iterator[None]:
    """Tell Megatron (and ModelOpt's Megatron plugins) that the current device is the CPU.

    What is replaced, and why: `torch.cuda.current_device`, `set_device`, `synchronize`, `Tensor.cuda` and
    `Module.cuda` name or move to the device that isn't there; four modules write `device="cuda"`; optimizer and
    gradient clipping recognise float32 parameters by `Tensor.type() == "torch.cuda.FloatTensor"`; dropout, which is
    off, asks for the CUDA random generator; gloo refuses to gather tensors of no dimension.
    """
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, optimizer
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.tensor_parallel import random as megatron_random

    with contextlib.ExitStack() as stack:
        cpu = torch.device("cpu")
        replace(stack, torch.cuda, "current_device", lambda: cpu)
        replace(stack, torch.cuda, "set_device", lambda device: None)
        replace(stack, torch.cuda, "synchronize", lambda device=None: None)
        replace(stack, torch.nn.Module, "cuda", lambda self, device=None: self)
        replace(stack, torch.Tensor, "cuda", lambda self, *_, **__: self)

        type_of = torch.Tensor.type

        def cuda_type_of(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            found = type_of(tensor, *arguments, **options)
            return found.replace("torch.", "torch.cuda.", 1) if isinstance(found, str) else found

        replace(stack, torch.Tensor, "type", cuda_type_of)

        cpu_torch = _CpuTorch()
        for module in (clip_grads, optimizer, schedules, utils):
            replace(stack, module, "torch", cpu_torch)
        tracker = megatron_random.CudaRNGStatesTracker
        replace(stack, tracker, "fork", lambda self, *_, **__: contextlib.nullcontext())

        gather = dist.all_gather_into_tensor

        def gather_any(output: torch.Tensor, source: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            return gather(output, source.reshape(1) if source.dim() == 0 else source, *arguments, **options)

        replace(stack, dist, "all_gather_into_tensor", gather_any)
        yield


def replace(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute for as long as `stack` is open."""
    stack.enter_context(mock.patch.object(owner, name, value))


def build_no_allocator(stack: contextlib.ExitStack) -> None:
    """Keep the import of Megatron's inference from compiling an allocator for CUDA's unified memory, which nothing here
    uses and Megatron does without if it can't be built. It would take seconds, write below the home directory, and wait
    for ever where a killed process has left its lock.
    """

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("nothing is compiled here")

    replace(stack, cpp_extension, "load_inline", refuse)


@contextlib.contextmanager
def torchs_adamw() -> Iterator[None]:
    """Megatron makes torch's AdamW inside this block, whichever Adam it found when it was imported."""
    from megatron.core import optimizer

    with mock.patch.object(optimizer, "Adam", torch.optim.AdamW):
        yield


@contextlib.contextmanager
def fused_swiglu(swiglu: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Megatron's MLPs without biases take this SwiGLU inside this block, where they would take a fused one."""
    from megatron.core.transformer import mlp

    with mock.patch.object(mlp, "bias_swiglu_impl", lambda inner, *_: swiglu(inner)):
        yield


def shards(part: "DistributedOptimizer") -> Iterator[tuple[nn.Parameter, int, Tensor]]:
    """Per parameter that this rank has a piece of: it, where the piece starts in it, and the piece's master weights."""
    for parameter in part.model_param_gbuf_map:
        group, order = part.model_param_group_index_map[parameter]
        start = part._get_model_param_range_map(parameter)["param"].start
        yield parameter, start, part.optimizer.param_groups[group]["params"][order]


def register_norms() -> None:
    """Teach ModelOpt's pruning the norms of the local layer spec, torch's and ours. It knows those of Apex and
    Transformer Engine. Call it after ModelOpt was imported.
    """
    from modelopt.torch.nas.modules import _DynamicLayerNorm
    from modelopt.torch.nas.registry import DMRegistry

    from .norms import LayerNorm1P

    if nn.RMSNorm in DMRegistry:
        return

    @DMRegistry.register({nn.RMSNorm: "nn.RMSNorm", LayerNorm1P: "LayerNorm1P"})
    class _DynamicNorm(_DynamicLayerNorm):  # pyright: ignore[reportUnusedClass]  # registered by its decorator
        """A norm whose width is shared with the residual stream."""

        def _setup(self, *, num_features: Any) -> None:
            narrow: Any = self._cut_to_active_features
            shape: Any = self._get_normalized_shape
            self._register_hparam("num_features", num_features)
            self._register_dynamic_attribute("weight", narrow)
            if hasattr(self, "bias"):
                self._register_dynamic_attribute("bias", narrow)
            self._register_dynamic_attribute("normalized_shape", shape)


def write_search(folder: Path, activations: Mapping[str, Any], layers: Mapping[int, float]) -> None:
    """Write the state of Minitron's search after its forward loop (one pipeline stage), for this rank to resume from.

    Args:
        folder: `scores_path` of the search. ModelOpt unpickles what lies there: nobody else may write into it.
        activations: by name of the module: its squared scores. "" has the hidden channels', as {0: scores}.
        layers: by number, counted from 1: the layer's score.
    """
    state = {
        "activations_per_rank": [activations],
        "layer_scores": layers,
        "sorted_layers": None,
        "top_k_candidates_per_constraint": {},
    }
    torch.save(state, folder / f"rank{dist.get_rank()}.pth")


@contextlib.contextmanager
def own_hidden_size() -> Iterator[None]:
    """Minitron lets every rank keep its own hidden size inside this block.

    For pipeline stages without an embedding ModelOpt broadcasts rank 0's, but to all ranks: data-parallel ones would
    lose the tie between their embedding's width and their layers'.
    """
    from modelopt.torch.utils import distributed

    with mock.patch.object(distributed, "broadcast", lambda value, src=0, group=None: value):
        yield


def student_forward(model: Any, *arguments: Any, **named: Any) -> Tensor:
    """The forward pass of a combined model's student alone.

    The instance's own forward, ModelOpt's, runs the teacher whatever the flag says; the class's heeds it.
    """
    with model.only_student_forward():
        return type(model).forward(model, *arguments, **named)


def student_input(model: Any, tensors: list[Tensor | None]) -> None:
    """Give a combined model's student alone what its pipeline stage received."""
    type(model).set_input_tensor(model, tensors)


def between_stages(
    model: Any, packed: Callable[[Tensor, Tensor], Tensor], unpacked: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> None:
    """Let a combined model's pipeline stage send what `packed` makes of its student's and its teacher's output, and
    give them what `unpacked` makes of what it received. ModelOpt's own stages pass these outputs alone.
    """
    teacher = model.teacher_model

    def set_input_tensor(tensors: list[Tensor | None]) -> None:
        [received] = tensors
        mine, theirs = (None, None) if received is None else unpacked(received)
        student_input(model, [mine])
        teacher.set_input_tensor([theirs])

    def forward(*arguments: Any, **named: Any) -> Tensor:
        with torch.no_grad():
            taught = teacher.eval()(*arguments, **named)
        learnt = student_forward(model, *arguments, **named)
        return learnt if model.post_process else packed(learnt, taught)

    model.set_input_tensor, model.forward = set_input_tensor, forward


def all_tokens(states: Tensor, config: Any) -> Tensor:
    """[sequence, batch, width] of what a layer gave, which is of this rank's part of the tokens where the sequence is
    parallel. Every rank of a tensor group goes on to the same with them.
    """
    from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

    if not config.sequence_parallel:
        return states
    return gather_from_sequence_parallel_region(states, tensor_parallel_output_grad=False)


def to_words_of_rank(hidden: Tensor, config: Any) -> Tensor:
    """What goes into an output layer, of all tokens; the gradients that come from each rank's words are summed."""
    from megatron.core.tensor_parallel import (
        copy_to_tensor_model_parallel_region,
        gather_from_sequence_parallel_region,
    )

    if config.sequence_parallel:
        return gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
    return copy_to_tensor_model_parallel_region(hidden) if config.tensor_model_parallel_size > 1 else hidden


def replace_output_layer(model: Any, instead: Callable[[Tensor, Tensor], bool]) -> None:
    """Ask `instead` whenever a GPTModel calls its output layer: hidden states [sequence, batch, hidden size] and the
    layer's weight, which may be the embedding's. Where it says yes, there are no logits: the hidden states pass.
    """
    layer = model.output_layer
    whole = layer.forward

    def forward(hidden: Tensor, weight: Tensor | None = None, **named: Any) -> tuple[Tensor, Any]:
        if instead(hidden, layer.weight if weight is None else weight):
            return hidden, None
        return whole(hidden, weight=weight, **named)

    layer.forward = forward
