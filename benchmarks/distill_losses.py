"""Forward KL of two output layers, as each library computes it: what `distill.py` compares."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from compression_pipeline.config import Chunks, LogitsKL
from compression_pipeline.losses import Head, Heads, Loss, Signals
from compression_pipeline.losses.logits_kl import LogitsKLLoss
from compression_pipeline.megatron.modelopt import modelopt

Value = Callable[[Head, Head, Tensor], Tensor]
"""(the student's output layer, the teacher's, labels [sequence, batch]) -> mean over tokens."""

LIGER_CHUNK = 256
"""Tokens. Liger's default, 1,024, takes four times the memory, and is no faster here."""


def losses(on_gpu: bool) -> dict[str, Value]:
    """By name; on a GPU Liger's kernel, too."""
    kernel: dict[str, Value] = {"liger_kernel": _ligers_kernel()} if on_gpu else {}
    return {
        "kl_div": _kl_div,
        "modelopt": _modelopts(),
        "fused": _fused,
        "liger": _ligers(),
        **kernel,
        "chunked": lambda student, teacher, labels: _chunked(student, teacher, labels, on_gpu=on_gpu),
    }


def _kl_div(student: Head, teacher: Head, labels: Tensor) -> Tensor:
    with torch.no_grad():
        target = log_softmax(teacher.logits().float(), dim=-1)
    found = log_softmax(student.logits().float(), dim=-1)
    return kl_div(found, target, reduction="none", log_target=True).sum(dim=-1).mean()


def _modelopts() -> Value:
    with modelopt():
        from modelopt.torch.distill.plugins.megatron import LogitsKLLoss as Theirs

    config: Any = SimpleNamespace(tensor_model_parallel_size=1, sequence_parallel=False)
    loss = Theirs(config)

    def value(student: Head, teacher: Head, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher.logits()
        return loss((student.logits(), None), (target, None))[0].mean()

    return value


def _ours() -> Loss:
    return LogitsKLLoss(LogitsKL(), *[None] * 2)  # type: ignore[arg-type]  # it asks neither model's sizes


def _fused(student: Head, teacher: Head, labels: Tensor) -> Tensor:
    """Ours on all logits."""
    with torch.no_grad():
        target = teacher.logits()
    return _ours()(Signals(student.logits()), Signals(target)).mean()


def _chunked(student: Head, teacher: Head, labels: Tensor, *, on_gpu: bool) -> Tensor:
    """Ours, as the phase computes it."""
    heads = Heads([_ours()], student, teacher, labels, Chunks.of(len(student.weight), on_gpu=on_gpu))
    return heads.weighted([1 / labels.numel()])[0]


def _ligers() -> Value:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # beta 0 is forward KL. Compiled, it needs a compiler, and compiles for each shape.
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False, chunk_size=LIGER_CHUNK
    )

    def value(student: Head, teacher: Head, labels: Tensor) -> Tensor:
        hidden, target = student.hidden.flatten(0, 1), teacher.hidden.flatten(0, 1)
        return loss(hidden, student.weight, target, teacher.weight.detach(), labels.flatten())

    return value


def _ligers_kernel() -> Value:
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=0.0)

    def value(student: Head, teacher: Head, labels: Tensor) -> Tensor:
        hidden, target = student.hidden.flatten(0, 1), teacher.hidden.flatten(0, 1)
        return loss(hidden, student.weight, target, teacher.weight.detach())

    return value
