"""What ranks that share a vocabulary check together; `sharing.run` runs it."""

from typing import Any, cast

import torch
import torch.distributed as dist
from test_heads import SUMS, Case, losses_of, near

from compression_pipeline.config import Chunks
from compression_pipeline.losses import Head, Heads, Words

VOCABULARY = 36


def check_losses() -> None:
    """Every loss of the table has the value and the gradients of one rank that has all words."""
    dist.init_process_group("gloo")
    for given in SUMS:
        losses, case = losses_of(*given), Case(11, 3, VOCABULARY)
        weights: list[Any] = [torch.rand(11, 3, generator=torch.Generator().manual_seed(n)) for n in range(len(losses))]
        total, values = Heads(losses, case.student, case.teacher, case.labels, Chunks(7, 3)).weighted(weights)
        of_hidden, of_weight = case.gradients(total)

        words = Words.of_rank(VOCABULARY, cast("dist.ProcessGroup", dist.group.WORLD))
        mine = slice(words.first, words.first + words.count)
        student, teacher = (Head(head.hidden, head.weight[mine]) for head in (case.student, case.teacher))
        heads = Heads(losses, student, teacher, case.labels, Chunks(7, 3), words)
        near(heads.values(), values)
        found, again = heads.weighted(weights)
        near(again, values)
        near(found, total)
        hidden, weight = case.gradients(found)
        near(weight[mine], of_weight[mine])
        assert not weight[: mine.start].any() and not weight[mine.stop :].any()
        assert not torch.allclose(hidden, of_hidden)  # it is what comes from these words alone
        dist.all_reduce(hidden)
        near(hidden, of_hidden)
    dist.destroy_process_group()
