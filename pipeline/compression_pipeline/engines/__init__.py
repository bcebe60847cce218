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
    module, name = _implementation(job)
    begin: Start = getattr(import_module(module), name)
    with begin(job, context, precision=precision, deterministic=deterministic, seed=seed) as engine:
        # On other nodes nobody knows which launch this is.
        context.folder = Path(engine.agree(str(context.folder)))
        yield engine


def preload(job: EngineJob) -> None:
    """Import what the job's engine imports once it starts, on a machine without a GPU. Its module says what, in a
    function of this name.
    """
    import_module(_implementation(job)[0]).preload()


def _implementation(job: EngineJob) -> tuple[str, str]:
    module, _, name = ENGINES[job.engine].implementation.partition(":")
    return module, name


__all__ = ["Engine", "Extension", "Model", "Start", "State", "Training", "preload", "start_engine"]
