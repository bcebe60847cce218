"""Pruning by ModelOpt's mcore_minitron, told by us what to keep.

ModelOpt would collect importance scores itself, on unfused attention (quadratic memory) and per run. Its search resumes
from a checkpoint of scores, though, and only their order matters. So we hand it one whose order is our choice, exactly:
no second forward pass, no ties decided differently, and any importance estimator will do.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compression_pipeline.config import Architecture
from compression_pipeline.huggingface.conversion import megatron_shapes
from compression_pipeline.importance import Choice

from . import private
from .modelopt import modelopt


def cut(model: Any, teacher: Architecture, student: Architecture, choice: Choice, *, divisor: int) -> None:
    """Prune a GPTModel of `teacher`'s sizes in place to `student`'s, keeping what `choice` says.

    Every rank calls it and gets the same model. `divisor`: what the student's widths are multiples of; ModelOpt's own
    defaults would let other sizes through with a configuration that disagrees with the weights. Afterwards every
    parameter has the student's shape, or RuntimeError is raised.
    """
    wanted = {
        "hidden_size": (teacher.hidden_size, student.hidden_size),
        "ffn_hidden_size": (teacher.ffn_hidden_size, student.ffn_hidden_size),
        "num_attention_heads": (teacher.attention_heads, student.attention_heads),
        "num_layers": (teacher.layers, student.layers),
    }
    targets = {name: target for name, (has, target) in wanted.items() if has != target}
    if targets:
        _prune(model, teacher, choice, targets, divisor)
    check(dict(model.named_parameters()), student)


def check(parameters: Mapping[str, Tensor], student: Architecture) -> None:
    """Hold every tensor's shape and the number of parameters against the student's architecture."""
    expected = megatron_shapes(student)
    for name in sorted(expected.keys() | parameters.keys()):
        found = tuple(parameters[name].shape) if name in parameters else None
        if found != expected.get(name):
            raise RuntimeError(f"pruning made {name} of shape {found}, the student needs {expected.get(name)}")
    count = sum(tensor.numel() for tensor in parameters.values())
    if count != student.parameters:
        raise RuntimeError(f"pruning left {count:,} parameters, the student has {student.parameters:,}")


def _prune(model: Any, teacher: Architecture, choice: Choice, targets: dict[str, int], divisor: int) -> None:
    with modelopt(), tempfile.TemporaryDirectory(prefix="order-") as folder:
        import modelopt.torch.prune as mtp
        from modelopt.torch.prune.plugins.mcore_minitron import get_mcore_minitron_config

        device = next(model.parameters()).device
        layers = {index + 1: float(index in choice.layers) for index in range(teacher.layers)}
        private.write_search(Path(folder), _activations(teacher, choice, device), layers)
        mode = get_mcore_minitron_config(
            hidden_size_divisor=divisor, ffn_hidden_size_divisor=divisor, num_layers_divisor=1
        )
        with private.own_hidden_size():
            mtp.prune(
                model,
                mode=[("mcore_minitron", mode)],  # pyright: ignore[reportArgumentType]  # modes may carry their config
                constraints={"export_config": targets},  # pyright: ignore[reportArgumentType]  # wider than it says
                dummy_input=None,  # pyright: ignore[reportArgumentType]  # Minitron measures no latency
                config={"scores_path": folder},
            )


def _activations(teacher: Architecture, choice: Choice, device: torch.device) -> dict[str, Any]:
    """Squared scores by name of the module, which order as `choice`."""
    activations: dict[str, Any] = {"": {0: _in_order(choice.hidden, teacher.hidden_size, device)}}
    for index in range(teacher.layers):
        name = f"decoder.layers.{index}."
        ffn = None if choice.ffn is None else choice.ffn[index]
        activations[name + "mlp"] = _in_order(ffn, teacher.ffn_hidden_size, device)
        # ModelOpt takes the norm over a head's channels: the first carries the score.
        heads = None if choice.heads is None else choice.heads[index]
        channels = torch.zeros(teacher.attention_heads, teacher.head_dim, device=device)
        channels[:, 0] = _in_order(heads, teacher.attention_heads, device)
        activations[name + "self_attention"] = channels.flatten()
    return activations


def _in_order(kept: Tensor | None, size: int, device: torch.device) -> Tensor:
    """[size] squared scores: falling along `kept`, 0 elsewhere. ModelOpt takes their roots, which are whole numbers."""
    squares = torch.zeros(size, device=device)
    if kept is not None:
        squares[kept.to(device)] = torch.arange(len(kept), 0, -1, device=device, dtype=torch.float32).square()
    return squares
