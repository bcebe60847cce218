"""What is told of each step of a distillation, on every rank, with the weights after it."""

from collections.abc import Callable
from pathlib import Path

from compression_pipeline.config import Architecture, DistillJob
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine
from compression_pipeline.errors import torn_write
from compression_pipeline.faults import classify


class Observer:
    """The distillation that is observed, and how rank 0 writes what it observes."""

    def __init__(
        self, job: DistillJob, context: Context, engine: Engine, student: Architecture, template: Path
    ) -> None:
        """`template`: the checkpoint that the student descends from, with its tokenizer."""
        self._job = job
        self._context = context
        self._engine = engine
        self._student = student
        self._template = template

    def _write_on_rank_0(self, write: Callable[[], None], folder: Path) -> None:
        """Call `write`, which writes into `folder`, on rank 0; every rank calls this. Raises PhaseError, the same on
        every rank, where it fails.
        """
        fault = None
        if self._engine.rank == 0:
            try:
                write()
            except Exception as error:  # whatever it is, the other ranks would wait
                fault = torn_write(error, folder) or classify(error)
        fault = self._engine.agree(fault)
        if fault is not None:
            raise fault
