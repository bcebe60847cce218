"""Where a distillation has its teacher's logits from, and what that allows of its losses."""

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING

from .base import Rule
from .layout import Parallelism
from .losses import LOSSES, OF_LIKELIEST, LossConfig
from .losses.logits_top_k_kl import LogitsTopKKL

if TYPE_CHECKING:
    from .training import DistillConfig

TOP_K, MOST_KEPT = 64, 8192
"""Tokens whose log-probabilities are kept after each token: by default, and at most."""


class TeacherLogits(StrEnum):
    """Where a distillation has the teacher's logits from."""

    LIVE = "Live"
    CACHED = "Cached"


def cached_rules() -> tuple[Rule, ...]:
    """The rules of DistillConfig."""
    others = [name for name in LOSSES if name not in OF_LIKELIEST]
    most = LogitsTopKKL.model_json_schema()["properties"]["topK"]["maximum"]
    return (
        Rule.of(
            "losses",
            "teacherLogits: Cached keeps the teacher's likeliest tokens alone, which is enough for "
            f"{', '.join(OF_LIKELIEST)} and for no other loss; remove the others, or set teacherLogits: Live",
            lambda distill: not distill.cached or all(loss.of_likeliest for loss in distill.losses),
            f"self.teacherLogits != 'Cached' || !self.losses.exists(loss, loss.type in {others})",
        ),
        Rule.of(
            "cachedTopK",
            "is less than topK of a loss, and tokens that are not kept cannot be compared; raise it, or lower topK",
            lambda distill: not distill.cached or max(map(_compared, distill.losses)) <= distill.cached_top_k,
            "self.teacherLogits != 'Cached' || self.cachedTopK < 1 || "
            f"self.losses.all(loss, loss.type != '{LogitsTopKKL.__name__}' || !has(loss.topK) || loss.topK > {most} || "
            "loss.topK <= self.cachedTopK)",
        ),
        Rule.of(
            "cachedTopK",
            "is of the logits that teacherLogits: Cached keeps; set that, or remove cachedTopK",
            _keeps_as_many_as_it_reads,
            "self.teacherLogits == 'Cached' || self.cachedTopK < 1 || "
            f"self.cachedTopK > {MOST_KEPT} || self.cachedTopK == {TOP_K}",
        ),
    )


def split_faults(distill: "DistillConfig", split: Parallelism) -> Iterator[tuple[str, str]]:
    """The fields of a layout that do not go with cached logits, each with a sentence."""
    for field in Parallelism.model_fields:
        if distill.cached and (size := getattr(split, field)) > 1:
            yield (
                field,
                f"{size} ranks share a model, and teacherLogits: Cached is for ranks that hold it whole; set 1, or "
                "distill.teacherLogits: Live",
            )


def _compared(loss: LossConfig) -> int:
    """The likeliest tokens that a loss compares, if it says how many."""
    return loss.top_k if isinstance(loss, LogitsTopKKL) else 0


def _keeps_as_many_as_it_reads(distill: "DistillConfig") -> bool:
    return distill.cached or distill.cached_top_k == TOP_K
