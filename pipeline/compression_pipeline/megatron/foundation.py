"""What the engine stands on, whatever else the image has.

NVIDIA's images bring Apex and Transformer Engine. Megatron takes their norms, optimizer and gradient clipping wherever
they can be imported: other arithmetic, and kinds that this engine's checkpoints and ModelOpt's pruning don't know. The
engine has one path, through torch's own fused kernels, so they are hidden from Megatron and ModelOpt.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import torch
from torch.cuda import nccl

LEFT_ASIDE = ("apex", "transformer_engine")
"""Packages that Megatron and ModelOpt would take another path with."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let nothing import what is left aside. None in sys.modules is Python's way to say that a module isn't there."""
    modules = cast("dict[str, Any]", sys.modules)
    before = {name: module for name, module in modules.items() if name.partition(".")[0] in LEFT_ASIDE}
    for name in before:
        del modules[name]
    modules.update(dict.fromkeys(LEFT_ASIDE))
    try:
        yield
    finally:
        for name in LEFT_ASIDE:
            del modules[name]
        modules.update(before)


def found_aside() -> list[str]:
    """What could be imported and is left aside, with versions; nothing is imported."""
    return [_with_version(name) for name in LEFT_ASIDE if sys.modules.get(name) or importlib.util.find_spec(name)]


def described(device: torch.device, dtype: torch.dtype, threads: int) -> str:
    """One line about what computes here."""
    if device.type == "cuda":
        collectives = ".".join(map(str, nccl.version()))
        platform = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
        place = f"{platform} on {torch.cuda.get_device_name(device)}, NCCL {collectives}"
    else:
        place = f"CPU, {threads} {'thread' if threads == 1 else 'threads'}, gloo"
    parts = [
        ", ".join(_with_version(name) for name in ("torch", "megatron-core", "nvidia-modelopt")),
        place,
        "attention: torch's scaled_dot_product_attention",
        f"precision: {'BF16' if dtype is torch.bfloat16 else 'FP32'}",
    ]
    if aside := found_aside():
        parts.append(f"found and not used: {', '.join(aside)}")
    return f"stands on {'; '.join(parts)}"


def _with_version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name
