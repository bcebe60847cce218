"""States of a rank's random generators in a checkpoint. Nothing draws from them while dropout is off."""

import random
from dataclasses import dataclass
from typing import Any, cast

import numpy
import torch
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker, get_cuda_rng_tracker

from .runtime import Runtime


def states(runtime: Runtime) -> dict[str, Any]:
    """Those of this process, for JSON."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    found: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, numpy.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _hex(torch.get_rng_state()),
    }
    if runtime.on_gpu:
        found["cuda"] = _hex(torch.cuda.get_rng_state())
        found["tracker"] = {name: _hex(state) for name, state in _tracker().get_states().items()}
    return found


@dataclass(frozen=True)
class Generators:
    """States that were read, and that the generators of the CPU take."""

    of_python: Any
    of_numpy: Any
    of_torch: torch.Tensor
    of_cuda: torch.Tensor | None
    tracker: dict[str, torch.Tensor]

    @classmethod
    def parse(cls, told: dict[str, Any]) -> "Generators":
        """Those of `states`. Raises ValueError, TypeError, LookupError or AttributeError for anything else."""
        version, words, gauss = told["python"]
        name, keys, *rest = told["numpy"]
        found = cls(
            of_python=(version, tuple(words), gauss),
            of_numpy=(name, numpy.array(keys, dtype=numpy.uint32), *rest),
            of_torch=_unhex(told["torch"]),
            of_cuda=_unhex(told["cuda"]) if "cuda" in told else None,
            tracker={name: _unhex(state) for name, state in told.get("tracker", {}).items()},
        )
        # On generators that nobody draws from: what is wrong with a state is known before any of them is set.
        random.Random().setstate(found.of_python)  # noqa: S311 (no secret)
        numpy.random.RandomState().set_state(found.of_numpy)
        try:
            torch.Generator().set_state(found.of_torch)
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        return found

    def restore(self, runtime: Runtime) -> None:
        """Set the process's own generators. Raises what CUDA does."""
        random.setstate(self.of_python)
        numpy.random.set_state(self.of_numpy)
        torch.set_rng_state(self.of_torch)
        if runtime.on_gpu and self.of_cuda is not None:
            torch.cuda.set_rng_state(self.of_cuda)
            _tracker().set_states(self.tracker)


def _hex(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _unhex(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _tracker() -> CudaRNGStatesTracker:
    return cast("CudaRNGStatesTracker", get_cuda_rng_tracker())
