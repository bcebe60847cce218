"""Scores a model whose weights are in memory, as the checkpoint would be scored that is written of them."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from compression_pipeline.config import Architecture, EvaluateConfig, Precision, TaskScore
from compression_pipeline.huggingface.families import member
from compression_pipeline.huggingface.files import read_config
from compression_pipeline.huggingface.layout import GENERATION_CONFIG
from compression_pipeline.imports import import_transformers


def score_live(
    tensors: Iterable[tuple[str, Tensor]],
    architecture: Architecture,
    *,
    template: Path,
    tasks: Path,
    settings: EvaluateConfig,
    rounded: torch.dtype,
    precision: Precision,
    device: torch.device,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> list[TaskScore]:
    """What the model of these tensors (Hugging Face's names) scores in the tasks of `settings`, as `scoring.score`
    does. Nothing that draws at random afterwards draws otherwise for it.

    Args:
        template: folder of the checkpoint that the model descends from, with its tokenizer.
        tasks: folder of an artifact of the phase tasks.
        rounded: type that the weights are rounded to, as export will.
        precision: arithmetic of the forward pass: BF16 or FP32.
        tick: told after each batch, how many of how many requests of a task are done; what it raises ends the scoring.
    """
    library = import_transformers()
    from .scoring import score

    with repeatable():
        model = live_model(
            tensors,
            architecture,
            template=template,
            rounded=rounded,
            computed=torch.bfloat16 if precision is Precision.BF16 else torch.float32,
            device=device,
        )
        tokenizer = library.AutoTokenizer.from_pretrained(template, local_files_only=True, trust_remote_code=False)
        scores, _ = score(model, tokenizer, tasks, settings, tick=tick)
    return scores


@contextmanager
def repeatable() -> Iterator[None]:
    """The same bits from two runs on one device, as far as torch can; speed is not measured in here. Random generators
    are afterwards as they were before.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    of_python, of_numpy = random.getstate(), numpy.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)
            random.setstate(of_python)
            numpy.random.set_state(of_numpy)


def live_model(
    tensors: Iterable[tuple[str, Tensor]],
    architecture: Architecture,
    *,
    template: Path,
    rounded: torch.dtype,
    computed: torch.dtype,
    device: torch.device,
) -> Any:
    """The model of transformers with these weights (Hugging Face's names), rounded to `rounded`, in the arithmetic of
    `computed`. `template`: folder of the checkpoint that it descends from. The tensors are copied.
    """
    library, (kind, config) = import_transformers(), _model_type(architecture, template, rounded)
    state = {name: tensor.detach().to(device=device, dtype=rounded, copy=True).to(computed) for name, tensor in tensors}
    model = kind.from_pretrained(None, config=config, state_dict=state, dtype=computed)
    del state  # which the model may have copied: the device would hold both
    if (template / GENERATION_CONFIG).is_file():
        model.generation_config = library.GenerationConfig.from_pretrained(template)
    return model.to(device=device).eval()


def random_model(architecture: Architecture, *, template: Path, computed: torch.dtype, device: torch.device) -> Any:
    """A model of transformers of this shape with random weights, to be timed. `template`: as of `live_model`."""
    kind, config = _model_type(architecture, template, computed)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        model = kind._from_config(config, dtype=computed)
    return model.to(device=device, dtype=computed).eval()


def _model_type(architecture: Architecture, template: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Class and configuration of a model of transformers."""
    library = import_transformers()
    told = member(architecture.family).configuration(
        architecture, read_config(template), str(dtype).removeprefix("torch.")
    )
    config = library.AutoConfig.for_model(told["model_type"], **{k: v for k, v in told.items() if k != "model_type"})
    return library.AutoModelForCausalLM._model_mapping[type(config)], config  # pyright: ignore
