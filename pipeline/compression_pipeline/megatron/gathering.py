"""Weights and logits that ranks have parts of, put together and spread again, one tensor at a time."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from compression_pipeline.engines import State
from compression_pipeline.huggingface.splitting import Share, joined, megatron_dimension_of

from .runtime import Runtime


def whole(weights: Iterable[tuple[str, Tensor]], runtime: Runtime, *, gated: bool) -> State:
    """Weights by Megatron's names, of which each rank gives its parts, in the same order.

    Where no matrix is shared they are what is given. Else the first rank of each stage of the first copy has them
    alone, in its main memory, and other copies need not give any. `gated`: whether there is a gate
    (`splitting.joined`).
    """
    if runtime.layout.tensor == 1:
        return dict(weights)
    found: dict[str, Tensor] = {}
    for name, part in weights:
        if runtime.data_rank > 0:
            continue
        if megatron_dimension_of(name) is None:
            if runtime.share.rank == 0:
                found[name] = part.detach().cpu()
            continue
        mine = part.detach().to(runtime.device).contiguous()
        first = runtime.share.rank == 0
        parts = [torch.empty_like(mine) for _ in range(runtime.share.ranks)] if first else None
        dist.gather(mine, parts, group=runtime.tensor_group, group_dst=0)
        if parts is not None:
            found[name] = joined(name, parts, gated=gated).cpu()
    return found


def place(name: str, parameter: Tensor, given: Tensor | None, runtime: Runtime, *, gated: bool) -> None:
    """Fill a parameter on every rank of a tensor group with its part of what the first of them is `given`."""
    if runtime.share.ranks > 1:
        mine, parts = torch.empty_like(parameter), None
        if given is not None:
            cut = (
                Share(rank, runtime.share.ranks).cut(name, given, gated=gated) for rank in range(runtime.share.ranks)
            )
            parts = [part.to(parameter).contiguous() for part in cut]
        dist.scatter(mine, parts, group=runtime.tensor_group, group_src=0)
        parameter.copy_(mine)
    elif given is not None:
        parameter.copy_(given)


def whole_shape(name: str, part: torch.Size, runtime: Runtime) -> torch.Size:
    """The shape of a weight of which this rank has such a part."""
    dimension = megatron_dimension_of(name)
    return torch.Size(size * runtime.share.ranks if n == dimension else size for n, size in enumerate(part))


def all_words(logits: Tensor, runtime: Runtime) -> Tensor:
    """[..., vocabulary] of [..., this rank's part of it], on every rank."""
    if runtime.share.ranks == 1:
        return logits
    mine = logits.contiguous()
    parts = [torch.empty_like(mine) for _ in range(runtime.share.ranks)]
    dist.all_gather(parts, mine, group=runtime.tensor_group)
    return torch.cat(parts, dim=-1)
