"""How fast shapes generate: a search for a speed times some, each with random weights, for the shape alone decides.

On rank 0, in plain transformers, as evaluate times the student that is made of them.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from compression_pipeline.config import (
    Architecture,
    GenerationConfig,
    GenerationFigures,
    Search,
    SearchJob,
    Shape,
    chains,
    fast_enough,
    timed_at_most,
)
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine
from compression_pipeline.errors import UserError
from compression_pipeline.phases.evaluate import computed_in

NAMED = 2
"""Shapes that are named where none is fast enough."""


@dataclass(frozen=True)
class Timed:
    """What was found of shapes' speeds."""

    teacher: GenerationFigures
    speeds: dict[Shape, float]
    """Tokens a second of every shape that was timed."""
    fast: Sequence[Architecture]
    """The candidates, the least cut first."""
    reaching: int
    """Timed shapes that are fast enough."""


def time_shapes(job: SearchJob, context: Context, engine: Engine, search: Search) -> Timed:
    """The least cut shapes that generate as fast as the target asks; every rank gets them.

    Raises UserError where none does, which names the fastest; Interrupted once any rank was told to stop.
    """
    return engine.on_rank_0(lambda tick: _time_shapes(job, context, engine.device, search, tick))


def _time_shapes(
    job: SearchJob, context: Context, device: torch.device, search: Search, tick: Callable[[], None]
) -> Timed:
    wanted = search.target.tokens_per_second or 0.0
    tried = chains(search)
    clock = _Clock(job, context, device, tick, most=timed_at_most(tried) + 1)
    teacher = clock.figures(search.teacher)
    fast = fast_enough(tried, wanted, lambda one: clock.figures(one).tokens_per_second)
    speeds = {
        shape: found.tokens_per_second for shape, found in clock.found.items() if shape != Shape.of(search.teacher)
    }
    if not fast:
        nearest = sorted(speeds, key=lambda shape: -speeds[shape])[:NAMED]
        named = "; ".join(f"{shape}: {speeds[shape]:,.1f}" for shape in nearest)
        raise UserError(
            f"prune.target.tokensPerSecond: no shape generates {wanted:,.6g} tokens/s on {teacher.device}; the "
            f"teacher generates {teacher.tokens_per_second:,.1f}, and the fastest are {named}; lower the "
            "target, or the min of a bound"
        )
    if teacher.tokens_per_second >= wanted:
        context.events.warning(
            f"the teacher generates {teacher.tokens_per_second:,.1f} tokens/s, so it need not be cut for {wanted:,.6g}"
        )
    ordered = search.least_cut_first(fast)[: search.target.candidates]
    return Timed(teacher, speeds, ordered, sum(speed >= wanted for speed in speeds.values()))


@dataclass
class _Clock:
    """Times shapes, each once over all attempts."""

    job: SearchJob
    context: Context
    device: torch.device
    tick: Callable[[], None]
    most: int
    """Shapes that are timed at most."""
    found: dict[Shape, GenerationFigures] = field(default_factory=dict[Shape, GenerationFigures])

    def figures(self, model: Architecture) -> GenerationFigures:
        """Of the model, as an attempt has measured them on such a device, or measured now."""
        shape = Shape.of(model)
        if shape not in self.found:
            self.tick()
            self.found[shape] = self._remembered(shape) or self._measured(model)
            self.context.events.progress(len(self.found), self.most, unit="shapes", doing="time generation")
        return self.found[shape]

    def _measured(self, model: Architecture) -> GenerationFigures:
        from compression_pipeline.tasks.generation import measure_generation
        from compression_pipeline.tasks.live import random_model  # which takes seconds to import

        timed = random_model(
            model,
            template=self.context.store.open(self.job.teacher).model,
            computed=computed_in(self.job.dtype, self.device),
            device=self.device,
        )
        found = measure_generation(timed, self.job.generation or GenerationConfig(), before=None)
        del timed
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        (self.context.folder / self._note(Shape.of(model))).write_text(json.dumps(found.to_json()))
        return found

    def _remembered(self, shape: Shape) -> GenerationFigures | None:
        from compression_pipeline.tasks.generation import device_name

        attempts = self.context.store.earlier_attempts(self.job.fingerprint)
        known = (_read(folder / self._note(shape)) for folder in attempts)
        return next((one for one in known if one is not None and one.device == device_name(self.device)), None)

    def _note(self, shape: Shape) -> str:
        return f"timed-{'-'.join(map(str, shape))}.json"


def _read(path: Path) -> GenerationFigures | None:
    try:
        return GenerationFigures.model_validate_json(path.read_text())
    except (OSError, ValueError):
        return None
