"""The words whose logits a rank has, and sums over all of them.

Tensor parallelism gives each rank the logits of a part of the vocabulary. What is summed over the vocabulary is summed
over the ranks then, and each of them has the sum: so every rank goes on to the same losses, and what flows back to its
own logits is what flows back to the sum. No rank ever has the logits of the others.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Words:
    """The words of number `first` to before `first + count` of `total`."""

    first: int = 0
    count: int = 0
    total: int = 0
    group: dist.ProcessGroup | None = None
    """The ranks that have all words together, in order; None: this one has all, however many there are."""

    @classmethod
    def of_rank(cls, total: int, group: dist.ProcessGroup) -> "Words":
        """This rank's share of what the group has in equal parts."""
        ranks = dist.get_world_size(group)
        count = total // ranks
        return cls() if ranks == 1 else cls(dist.get_rank(group) * count, count, total, group)

    @property
    def whole(self) -> bool:
        """Whether the rank has all words."""
        return self.group is None

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all words of [..., these words]: [...], with a gradient."""
        return self.over_ranks(values.sum(dim=-1))

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all words of [..., these words]: [...], with a gradient."""
        return values.mean(dim=-1) if self.group is None else self.sum(values) / self.total

    def over_ranks(self, value: Tensor) -> Tensor:
        """The sum over the ranks of what each has of a sum, with a gradient."""
        return value if self.group is None else cast("Tensor", _Sum.apply(value, self.group))

    def log_normalizer(self, logits: Tensor) -> Tensor:
        """log sum exp over all words of [..., these words]: [...], with a gradient."""
        if self.whole:
            return logits.logsumexp(dim=-1)
        highest = self._highest(logits.detach())
        return self.sum((logits - highest.unsqueeze(-1)).exp()).log() + highest

    def log_softmax(self, logits: Tensor, dtype: torch.dtype) -> Tensor:
        """Log-probabilities of these words among all, in a type, without a gradient."""
        if self.whole:
            return torch.log_softmax(logits, dim=-1, dtype=dtype)
        # A copy even where the type is the same: it is overwritten.
        logs = logits.to(dtype, copy=True).sub_(self._highest(logits).to(dtype).unsqueeze(-1))
        return logs.sub_(self.sum(logs.exp()).log_().unsqueeze(-1))

    def of(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """The logits of these tokens, wherever they are: [..., these words], [..., k] -> [..., k], with a gradient."""
        if self.whole:
            return logits.gather(-1, tokens)
        mine = (tokens >= self.first) & (tokens < self.first + self.count)
        found = logits.gather(-1, (tokens - self.first).clamp(0, self.count - 1))
        return self.over_ranks(torch.where(mine, found, 0))

    def likeliest(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The highest logits among all words and whose they are, [..., count], without a gradient."""
        if self.whole:
            return logits.topk(count, dim=-1)
        values, tokens = logits.topk(min(count, self.count), dim=-1)
        values, places = self._from_all(values).topk(count, dim=-1)
        return values, self._from_all(tokens + self.first).gather(-1, places)

    def _highest(self, logits: Tensor) -> Tensor:
        highest = logits.amax(dim=-1)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self.group)
        return highest

    def _from_all(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(self.total // self.count)]
        dist.all_gather(parts, values.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)


WHOLE = Words()


class _Sum(torch.autograd.Function):
    """A sum over ranks, of which each goes on to the same: the gradient of a part is that of the sum."""

    @staticmethod
    def forward(context: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        """The same on every rank."""
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """As it comes."""
        return gradients[0], None
