"""How the ranks of a job share its work. Ranks are computed here and nowhere else.

A model is split over the ranks of one copy: over `tensor` ranks within each matrix, over `pipeline` ranks by layers,
and over `context` ranks along the sequence. The ranks that are left over are data parallel: each copy takes its own
part of the global batch.
"""

from typing import Self

from pydantic import Field, model_validator

from .base import ConfigModel, nearest_divisors


class Parallelism(ConfigModel):
    """How one copy of the model is split. The default is not at all: all ranks are data parallel."""

    tensor: int = Field(default=1, ge=1, description="Ranks that share each matrix of a layer.")
    pipeline: int = Field(default=1, ge=1, description="Stages of consecutive layers, each on ranks of its own.")
    context: int = Field(default=1, ge=1, description="Ranks that share each sequence.")

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
        for field in Parallelism.model_fields:
            if (size := getattr(self, field)) > 1:
                return field, f"{size} is not supported yet; leave it at 1, so that every rank holds the whole model"
        return None

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
    def per_stage(self) -> int:
        """Ranks of one pipeline stage, over all copies."""
        return self.ranks // self.pipeline
