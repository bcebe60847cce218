"""Tokens per second of a distillation step, ours beside the naive one and ModelOpt's own loss, in the same process.

    python benchmarks/distill.py [--json] [--hidden 128 ...]

All variants train the same student (random weights, same data) with float32 on CPU and bfloat16 on GPU:

- naive: two plain forward passes, `torch.nn.functional.kl_div`, backward, gradient clipping, torch's AdamW;
- modelopt: our training loop around ModelOpt's distillation with its own LogitsKLLoss;
- ours: the same with the fused loss, which is what the distill phase runs.

Rounds alternate between the variants, so that a busy machine slows all of them; the figure is the median.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from llama import llama, parser_of
from torch.nn.functional import kl_div, log_softmax

from compression_pipeline.config import Architecture, DistillConfig, DistillJob, Needs, ValidationConfig
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime, runtime

Step = Callable[[], float]


def main() -> None:
    """Measure and print."""
    sizes = {"student_hidden": 96, "student_ffn": 256, "micro_batch": 16, "micro_batches": 1}
    chosen = parser_of(__doc__, **sizes, rounds=20, threads=0).parse_args()
    warnings.simplefilter("ignore")
    job = DistillJob(
        run="benchmark",
        step="distill",
        attempt=1,
        fingerprint="0" * 32,
        store="/nonexistent",
        threads=chosen.threads or None,
        data="",
        teacher="",
        pruned="",
        sequence_length=chosen.sequence,
        distill=DistillConfig(steps=1, warmup_steps=0, micro_batch_size=chosen.micro_batch),
        validation=ValidationConfig(),
    )
    with runtime(job) as current:
        report = measure(job, chosen, current)
    if chosen.json:
        sys.stdout.write(json.dumps(report) + "\n")
        return
    lines = [
        f"{report['device']}, {report['threads']} threads, {report['dtype']}; teacher {report['teacherParameters']:,}"
    ]
    lines[0] += f" and student {report['studentParameters']:,} parameters, {report['tokensPerStep']:,} tokens a step"
    for name, rate in report["tokensPerSecond"].items():
        lines.append(f"{name:>10}  {rate:>12,.0f} tokens/s  {rate / report['tokensPerSecond']['naive']:.2f}x")
    lines.append(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    sys.stdout.write("\n".join(lines) + "\n")


def measure(job: DistillJob, chosen: argparse.Namespace, current: Runtime) -> dict[str, Any]:
    """Run all variants in turn; tokens per second by name, and what that was measured on."""
    teacher = llama(chosen, chosen.hidden, chosen.ffn)
    student = llama(chosen, chosen.student_hidden, chosen.student_ffn)
    batches = data(chosen, current)
    variants: dict[str, Step] = {
        "naive": naive(teacher, student, job, current, batches),
        "modelopt": combined(teacher, student, job, current, batches, fused=False),
        "ours": combined(teacher, student, job, current, batches, fused=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    losses: dict[str, float] = {}
    for number in range(chosen.rounds + 2):
        for name, step in variants.items():
            synchronize(current)
            started = time.perf_counter()
            losses[name] = step()
            synchronize(current)
            if number >= 2:  # the first rounds allocate and warm up
                seconds[name].append(time.perf_counter() - started)
    tokens = chosen.micro_batch * chosen.micro_batches * chosen.sequence
    rates = {name: tokens / statistics.median(taken) for name, taken in seconds.items()}
    gpu = torch.cuda.get_device_name(current.device) if current.on_gpu else "CPU"
    return {
        "device": gpu,
        "threads": current.threads,
        "dtype": str(current.dtype).removeprefix("torch."),
        "teacherParameters": teacher.parameters,
        "studentParameters": student.parameters,
        "tokensPerStep": tokens,
        "rounds": chosen.rounds,
        "tokensPerSecond": rates,
        "ratio": rates["ours"] / rates["naive"],
        "lossAfterRounds": losses,
        "versions": {name: version(name) for name in ("torch", "megatron-core", "nvidia-modelopt")},
    }


def data(chosen: argparse.Namespace, current: Runtime) -> list[Any]:
    """One step's micro batches of random tokens."""
    from compression_pipeline.text.batches import Batch

    generator = torch.Generator().manual_seed(0)
    shape = (chosen.micro_batch, chosen.sequence + 1)
    made: list[Any] = []
    for _ in range(chosen.micro_batches):
        tokens = torch.randint(0, chosen.vocabulary, shape, generator=generator).to(current.device)
        positions = torch.arange(chosen.sequence, device=current.device).expand(chosen.micro_batch, -1)
        made.append(Batch(tokens[:, :-1].contiguous(), positions, tokens[:, 1:].contiguous()))
    return made


def random_model(shape: Architecture, current: Runtime, length: int, seed: int) -> Any:
    """A GPTModel with the same random weights every time."""
    model = build(shape, current, sequence_length=length)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.02
            parameter.copy_(noise + 1 if "norm" in name else noise)
    return model


def naive(teacher: Architecture, student: Architecture, job: DistillJob, current: Runtime, batches: list[Any]) -> Step:
    """The step that one writes without a library: plain modules, plain optimizer."""
    length = job.sequence_length
    big, small = random_model(teacher, current, length, 1).eval(), random_model(student, current, length, 2).train()
    optimizer = torch.optim.AdamW(small.parameters(), lr=job.distill.learning_rate)

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            with torch.no_grad():
                target = log_softmax(big(batch.tokens, batch.positions, None).float(), dim=-1)
            found = log_softmax(small(batch.tokens, batch.positions, None).float(), dim=-1)
            loss = kl_div(found, target, reduction="none", log_target=True).sum(dim=-1).mean() / len(batches)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(small.parameters(), job.distill.clip_gradient)
        optimizer.step()
        return total

    return step


def combined(
    teacher: Architecture, student: Architecture, job: DistillJob, current: Runtime, batches: list[Any], *, fused: bool
) -> Step:
    """A step of the distill phase; without `fused`, with ModelOpt's LogitsKLLoss in place of ours."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from compression_pipeline.losses import Loss, Signals
    from compression_pipeline.megatron.distillation import DistillationLoss, combine
    from compression_pipeline.megatron.modelopt import modelopt
    from compression_pipeline.megatron.objective import Objective
    from compression_pipeline.megatron.optimizer import Optimizer
    from compression_pipeline.megatron.training import data_parallel

    class ModelOptsOwn(Loss):
        """ModelOpt's LogitsKLLoss in the place of ours."""

        def __init__(self, config: Any) -> None:
            super().__init__()
            with modelopt():
                from modelopt.torch.distill.plugins.megatron import LogitsKLLoss

                self._loss = LogitsKLLoss(config)

        def forward(self, student: Signals, teacher: Signals) -> torch.Tensor:
            return self._loss((student.logits, None), (teacher.logits, None))[0].transpose(0, 1)

    length, settings = job.sequence_length, job.distill
    big, small = random_model(teacher, current, length, 1).eval(), random_model(student, current, length, 2)
    objective = (
        Objective.of(settings.losses, teacher, student, current, seed=settings.seed)
        if fused
        else Objective(settings.losses, [ModelOptsOwn(small.config)], [Needs(logits=True)])
    )
    model = combine(small, big, objective)
    wrapped = data_parallel(model)
    wrapped.train()
    optimizer = Optimizer(wrapped, settings, current)
    loss = DistillationLoss(model, objective)

    def forward(iterator: Any, module: torch.nn.Module) -> Any:
        batch = next(iterator)

        def reduce(output: torch.Tensor) -> Any:
            value = loss.reduce(output, batch)
            return value, {"loss": value.detach().clone()}

        return loss.forward(module, batch), reduce

    def step() -> float:
        wrapped.zero_grad_buffer()
        optimizer.zero_gradients()
        iterator: Any = iter(batches)
        results = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterator,
            model=wrapped,
            num_microbatches=len(batches),
            seq_length=length,
            micro_batch_size=settings.micro_batch_size,
            forward_only=False,
        )
        norm = optimizer.gradient_norm()
        optimizer.step(settings.learning_rate, norm)
        return sum(float(result["loss"]) for result in results) / len(results)

    return step


def synchronize(current: Runtime) -> None:
    """Wait for the GPU, where there is one."""
    if current.on_gpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
