"""Between the phases and what computes: `start_engine` gives the engine that a job names (`config.ENGINES`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from compression_pipeline.config import ENGINES, EngineJob, Precision
from compression_pipeline.context import Context

from .base import Engine, Extension, Model, Start, State, Training


@contextmanager
def start_engine(
    job: EngineJob,
    context: Context,
    *,
    precision: Precision,
    deterministic: bool = False,
    seed: int = 1234,
) -> Iterator[Engine]:
    """The job's engine, inside this block; every rank then uses rank 0's folder. Raises as `Start` does."""
    module, _, name = ENGINES[job.engine].implementation.partition(":")
    begin: Start = getattr(import_module(module), name)
    with begin(job, context, precision=precision, deterministic=deterministic, seed=seed) as engine:
        # On other nodes nobody knows which launch this is.
        context.folder = Path(engine.agree(str(context.folder)))
        yield engine


__all__ = ["Engine", "Extension", "Model", "Start", "State", "Training", "start_engine"]
