"""The fused loss is torch's kl_div and ModelOpt's LogitsKLLoss, in value and gradient."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_models import architecture
from torch.nn.functional import kl_div, log_softmax

from compression_pipeline.config import LogitsKL
from compression_pipeline.losses import Signals, build_loss
from compression_pipeline.losses.fused import fused
from compression_pipeline.losses.logits_kl import forward_kl
from compression_pipeline.megatron.modelopt import modelopt
from compression_pipeline.megatron.runtime import Runtime


def logits(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def reference(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    divergence = kl_div(log_softmax(student, -1), log_softmax(teacher, -1), reduction="none", log_target=True)
    return divergence.sum(-1)


@pytest.mark.parametrize("vocabulary", [2, 33, 1000])
@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
def test_value_and_gradient_are_those_of_kl_div(vocabulary: int, scale: float) -> None:
    student = logits(5, 3, vocabulary, scale=scale).requires_grad_()
    teacher = logits(5, 3, vocabulary, seed=1, scale=scale)
    weights = torch.rand(5, 3, generator=torch.Generator().manual_seed(2))
    expected = reference(student, teacher)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), student)
    found = fused(student, teacher, forward_kl)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), student)[0], gradient, rtol=1e-5, atol=1e-6)


def test_gradient_by_finite_differences() -> None:
    student = logits(2, 2, 7, dtype=torch.float64).requires_grad_()
    teacher = logits(2, 2, 7, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: fused(s, teacher, forward_kl), (student,))


def test_half_precision_is_computed_in_single() -> None:
    student = logits(4, 50, dtype=torch.bfloat16).requires_grad_()
    teacher = logits(4, 50, seed=1, dtype=torch.bfloat16)
    found = fused(student, teacher, forward_kl)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reference(student.float(), teacher.float()), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.mean(), student)
    assert gradient.dtype == torch.bfloat16
    wide = student.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(reference(wide, teacher.float()).mean(), wide)
    torch.testing.assert_close(gradient.float(), expected, rtol=1e-2, atol=1e-4)


def test_what_is_matched_costs_nothing_and_the_teacher_is_left_alone() -> None:
    student = logits(4, 50).requires_grad_()
    teacher = student.detach().clone().requires_grad_()
    loss = fused(student, teacher, forward_kl)
    loss.sum().backward()
    assert torch.equal(loss, torch.zeros(4))
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))
    assert teacher.grad is None
    assert torch.equal(teacher, student)
    assert (fused(student, logits(4, 50, seed=3), forward_kl) > 0).all()


def test_one_tensor_of_the_logits_size_is_kept_for_the_backward_pass() -> None:
    student, teacher = logits(8, 64).requires_grad_(), logits(8, 64, seed=1)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        fused(student, teacher, forward_kl)
    assert [tensor.shape for tensor in kept] == [student.shape]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_loss_is_modelopts(engine: Runtime, temperature: float) -> None:
    config: Any = SimpleNamespace(tensor_model_parallel_size=1, sequence_parallel=False)
    student, teacher = logits(6, 2, 40).requires_grad_(), logits(6, 2, 40, seed=1)
    sizes = architecture()
    loss = build_loss(LogitsKL(temperature=temperature), sizes, sizes)
    found = loss(Signals(student), Signals(teacher))
    assert found.shape == (6, 2)
    with modelopt():
        from modelopt.torch.distill.plugins.megatron import LogitsKLLoss

        expected, *_ = LogitsKLLoss(config, temperature=temperature)((student, None), (teacher, None))
    torch.testing.assert_close(found.transpose(0, 1), expected, rtol=1e-5, atol=1e-6)
    one, other = (torch.autograd.grad(each.mean(), student)[0] for each in (found, expected))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
