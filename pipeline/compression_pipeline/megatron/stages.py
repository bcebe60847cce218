"""What passes between pipeline stages outside of training: activations of a forward pass, and weights.

Training's own traffic is Megatron's (`megatron.core.pipeline_parallel`). Weights are moved tensor by tensor, over the
ranks of the first copy of the model; so no device ever holds more than its stage and one tensor. Where ranks share the
matrices of a stage, the first of them sends and receives whole ones (`gathering`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from compression_pipeline.text.batches import Batch
from compression_pipeline.text.isolation import bias_for

from . import gathering
from .runtime import Runtime


def forward(model: Any, batch: Batch, runtime: Runtime, *, labels: Tensor | None = None) -> Tensor | None:
    """A forward pass without gradient, of which each stage computes its part: what a GPTModel returns on the last one,
    None on the others. Every rank of the copy calls it, with the same batch.
    """
    arguments = batch.tokens, batch.positions, bias_for(model, batch.mask)
    with torch.no_grad():
        if runtime.layout.pipeline == 1:
            return model(*arguments, labels=labels)
        from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

        neighbours = P2PCommunicator(runtime.pipeline_group, model.config)
        sequences, length = batch.tokens.shape
        if model.config.sequence_parallel:
            length //= runtime.share.ranks
        model.set_input_tensor(
            neighbours.recv_forward([(length, sequences, model.config.hidden_size)], runtime.first_stage)
        )
        output = model(*arguments, labels=labels)
        neighbours.send_forward([output], runtime.last_stage)
    return output if runtime.last_stage else None


def from_last(output: Tensor | None, shape: tuple[int, ...], runtime: Runtime) -> Tensor:
    """What the last stage has computed, float32 of this shape, on all stages of the copy."""
    if runtime.layout.pipeline == 1 and output is not None:
        return output.float()
    told = torch.empty(shape, device=runtime.device) if output is None else output.float().contiguous()
    dist.broadcast(told, group=runtime.pipeline_group, group_src=runtime.layout.pipeline - 1)
    return told


def collect(mine: Mapping[str, Tensor], runtime: Runtime) -> dict[str, Tensor]:
    """The weights of all stages on rank 0: the other stages' in its main memory, its own as they are. Every rank calls
    it with its stage's, by the names of the whole model; other ranks get nothing, but where there is one stage.
    """
    if runtime.layout.pipeline == 1:
        return dict(mine)
    if not _of_first_copy(runtime):
        return {}
    found = dict(mine) if runtime.rank == 0 else {}
    seen = set[str]()
    for stage, described in enumerate(_told([(name, each.shape, each.dtype) for name, each in mine.items()], runtime)):
        for name, shape, dtype in described:
            if name in seen:  # the last stage's copy of a tied embedding
                continue
            seen.add(name)
            if stage and runtime.rank == 0:
                found[name] = _received(shape, dtype, stage, runtime).cpu()
            elif stage and stage == runtime.stage:
                _send(mine[name].detach(), 0, runtime)
    return found


def distribute(
    state: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    runtime: Runtime,
    *,
    gated: bool,
) -> None:
    """Fill every stage's `weights` in every copy with rank 0's `state`, rounded to `dtype`. Every rank calls it; both
    are by the names of the whole model. `gated`: whether there is a gate (`splitting.joined`).
    """
    place = partial(gathering.place, runtime=runtime, gated=gated)
    if _of_first_copy(runtime):
        for stage, names in enumerate(_told(list(weights), runtime)):
            for name in names:
                if runtime.rank == 0:
                    rounded = state[name].to(dtype)
                    place(name, weights[name], rounded) if stage == 0 else _send(rounded, stage, runtime)
                elif stage == runtime.stage:
                    shape = gathering.whole_shape(name, weights[name].shape, runtime)
                    place(name, weights[name], _received(shape, dtype, 0, runtime))
    elif runtime.data_rank == 0:
        for name, weight in weights.items():
            place(name, weight, None)
    for weight in weights.values():
        dist.broadcast(weight, group=runtime.data_group, group_src=0)


def _of_first_copy(runtime: Runtime) -> bool:
    """Whether this rank is among those that rank 0 shares a pipeline with."""
    return dist.get_process_group_ranks(runtime.pipeline_group)[0] == 0


def _told(mine: list[Any], runtime: Runtime) -> list[list[Any]]:
    told: list[list[Any]] = [[]] * runtime.layout.pipeline
    dist.all_gather_object(told, mine, group=runtime.pipeline_group)
    return told


def _send(tensor: Tensor, stage: int, runtime: Runtime) -> None:
    dist.send(tensor.to(runtime.device).contiguous(), group=runtime.pipeline_group, group_dst=stage)


def _received(shape: torch.Size, dtype: torch.dtype, stage: int, runtime: Runtime) -> Tensor:
    buffer = torch.empty(shape, dtype=dtype, device=runtime.device)
    dist.recv(buffer, group=runtime.pipeline_group, group_src=stage)
    return buffer
