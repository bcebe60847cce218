"""How the ranks of a job share its work. Ranks are computed here and nowhere else.

A model is split over the ranks of one copy: over `tensor` ranks within each matrix, over `pipeline` ranks by layers,
and over `context` ranks along the sequence. The ranks that are left over are data parallel: each copy takes its own
part of the global batch.
"""

from collections.abc import Iterator
from math import gcd
from typing import ClassVar, Self

from pydantic import Field, model_validator

from .architecture import Architecture
from .base import ConfigModel, Rule, cel_format, nearest_divisors
from .stages import stages_fault

_NOT_YET = "%d is not supported yet; leave it at 1"


def _not_yet(field: str) -> Rule:
    def check(split: "Parallelism") -> str | None:
        return _NOT_YET % size if (size := getattr(split, field)) > 1 else None

    # The API server asks of the default of this object, too, before it fills in those of its fields.
    holds = f"!has(self.{field}) || self.{field} <= 1"
    return Rule(field, check, cel=holds, message=cel_format(_NOT_YET, f"self.{field}"))


class Parallelism(ConfigModel):
    """How one copy of the model is split. The default is not at all: all ranks are data parallel."""

    unsupported_fields: ClassVar[tuple[str, ...]] = ("context",)
    """What no phase can do yet."""

    rules: ClassVar[tuple[Rule, ...]] = tuple(_not_yet(field) for field in unsupported_fields)

    tensor: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Number of GPUs of one node that share each matrix, and the vocabulary. It must divide the node's "
        "GPUs, and the key/value heads, query heads, ffnHiddenSize and vocabulary of teacher and student.",
    )
    pipeline: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Number of stages of consecutive layers, each on GPUs of its own, on any node. Layers that do not "
        "divide are split as evenly as can be. At most the layers of teacher and student; a stage idles "
        "the less, the more micro-batches a copy has.",
    )
    context: int = Field(
        default=1, ge=1, le=64, description="Number of GPUs that share each sequence. Only 1 is supported yet."
    )

    @property
    def per_copy(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context

    def fault(self, ranks: int) -> tuple[str, str] | None:
        """The field that does not fit a job of so many ranks, and a sentence that names values that do."""
        left = ranks
        for field in Parallelism.model_fields:
            size = getattr(self, field)
            if left % size:
                those = f"{ranks} ranks" if left == ranks else f"{left} that are left of {ranks} ranks"
                return field, f"{size} does not divide the {those}, nearest: {nearest_divisors(left, size)}"
            left //= size
        return None

    @property
    def unsupported(self) -> tuple[str, str] | None:
        """The field that asks for what no phase can do yet, and a sentence that says what to do."""
        for rule in type(self).rules:
            if sentence := rule.check(self):
                return rule.path, sentence
        return None

    def copies(self, *, nodes: int, per_node: int) -> int | None:
        """How many copies so many nodes of so many ranks hold; None where they do not hold whole ones."""
        ranks = nodes * per_node
        return None if self.fault(ranks) else ranks // self.per_copy

    def faults(self, model: Architecture, whose: str) -> Iterator[tuple[str, str]]:
        """The fields that do not fit a model, with sentences that name values that do. `whose`: such as
        "the teacher's".
        """
        widths = {
            "key/value heads": model.query_groups,
            "query heads": model.attention_heads,
            "channels of the feed-forward block": model.ffn_hidden_size,
            "tokens of the vocabulary": model.vocabulary_size,
        }
        wrong = [f"{size} {what}" for what, size in widths.items() if size % self.tensor]
        if wrong:
            nearest = nearest_divisors(gcd(*widths.values()), self.tensor)
            yield "tensor", f"{self.tensor} does not divide {whose} {' and '.join(wrong)}, nearest: {nearest}"
        if too_many := stages_fault(model, self.pipeline, whose):
            yield "pipeline", too_many

    def within(self, ranks: int) -> "Parallelism":
        """The same where that many ranks hold a copy; else one that they do hold, of fewer parts."""
        if self.per_copy <= ranks:
            return self
        tensor = max(n for n in range(1, ranks + 1) if self.tensor % n == 0)
        return Parallelism(tensor=tensor, pipeline=min(self.pipeline, ranks // tensor))

    def over(self, *, nodes: int, per_node: int) -> "ParallelLayout":
        """The layout of a job of so many nodes and processes on each. Raises ValueError where it does not fit."""
        return ParallelLayout(nodes=nodes, per_node=per_node, **self.model_dump())

    def of_ranks(self, ranks: int, *, per_node: int) -> "ParallelLayout":
        """The layout of a job of so many ranks. Raises ValueError where it does not fit."""
        if ranks % per_node:
            raise ValueError(f"{ranks} ranks are not whole nodes of {per_node}")
        return self.over(nodes=ranks // per_node, per_node=per_node)

    def most_ranks(self, limit: int, micro_batches: int) -> int:
        """The most ranks, at most `limit`, whose copies share `micro_batches` evenly; 0 if no copy fits."""
        copies = next((n for n in range(limit // self.per_copy, 0, -1) if micro_batches % n == 0), 0)
        return copies * self.per_copy


class ParallelLayout(Parallelism):
    """The ranks of one job: `nodes` x `per_node` of them, which is `data` x `tensor` x `pipeline` x `context`."""

    nodes: int = Field(ge=1, description="Pods of the job; 1 on one machine.")
    per_node: int = Field(ge=1, description="Ranks on each node.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if fault := self.fault(self.ranks):
            raise ValueError(": ".join(fault))
        return self

    @property
    def ranks(self) -> int:
        """All processes of the job."""
        return self.nodes * self.per_node

    @property
    def data(self) -> int:
        """Copies of the model, each of which takes its part of the global batch."""
        return self.ranks // self.per_copy

    @property
    def words(self) -> str:
        """How the ranks share the work, for who reads the job's first lines."""
        copies = "one copy" if self.data == 1 else f"{self.data} copies"
        return f"{copies} of the model, each over {self.per_copy} ranks: tensor {self.tensor}, pipeline {self.pipeline}"

    @property
    def per_stage(self) -> int:
        """Ranks of one pipeline stage, over all copies."""
        return self.ranks // self.pipeline
