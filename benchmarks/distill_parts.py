"""One distillation step taken apart: time of each section, memory of each component, the dearest operations.

    python benchmarks/distill_parts.py [--hidden 4096 ...] [--variant chunked ...] [--profile] [--json]

Variants are those of `distill.py`, and `recomputed`: `chunked` with activationRecomputation: Full. They are built, run
and freed one after another, so that each has the device to itself; one that needs more than the device has is told as
`outOfMemory`. Weights are random, the text too.

`mfu` is the share of the device's rate that the step's operations take (forward and backward passes of the student,
the forward pass of the teacher; `sizing.training_flops`); what is recomputed does not count. The rate is that of a
large matrix product, measured in the same run. The sections' seconds come from steps of their own, which wait for the
device at each boundary; the speed comes from steps that do not.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any
from unittest import mock

import torch
from distill import Combined, Step, data, job_of, measured_on, plain, synchronize
from distill_losses import losses
from llama import llama, parser_of
from peak import peak_of
from torch.profiler import ProfilerActivity, profile

from compression_pipeline.config import Architecture, DistillJob, Recomputation
from compression_pipeline.megatron.runtime import Runtime, free, runtime
from compression_pipeline.sizing import training_flops, training_memory

RECOMPUTED = "recomputed"
VARIANTS = ("kl_div", "modelopt", "fused", "liger", "liger_kernel", "chunked", RECOMPUTED)
OURS = ("chunked", RECOMPUTED)
SECTIONS = ("teacher", "student", "loss", "optimizer")
"""Those that are timed; the backward pass is the rest."""
DEAREST = 10


def main() -> None:
    """Measure and print."""
    sizes = {"student_hidden": 96, "student_ffn": 256, "micro_batch": 16, "micro_batches": 1}
    parser = parser_of(__doc__, **sizes, rounds=5, threads=0)
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="default: chunked and recomputed")
    parser.add_argument("--profile", action="store_true", help="the dearest operations of chunked, too")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    with runtime(job_of(chosen)) as current:
        report = measure(chosen, current)
    sys.stdout.write(json.dumps(report) + "\n" if chosen.json else table(report))


def measure(chosen: argparse.Namespace, current: Runtime) -> dict[str, Any]:
    """Every variant alone, and what it was measured on."""
    teacher = llama(chosen, chosen.hidden, chosen.ffn)
    student = llama(chosen, chosen.student_hidden, chosen.student_ffn)
    rate = matrix_rate(current)
    found: dict[str, Any] = {}
    for name in chosen.variant or ["chunked", RECOMPUTED]:
        found[name] = alone(name, teacher, student, chosen, current, rate)
        free(current)
    return {**measured_on(chosen, teacher, student, current), "matrixTeraflops": rate / 1e12, "variants": found}


def matrix_rate(current: Runtime) -> float:
    """Operations per second of a large matrix product, the best of several."""
    size = 8192 if current.on_gpu else 1024
    left, right = (torch.randn(size, size, device=current.device, dtype=current.dtype) for _ in range(2))
    times: list[float] = []
    for _ in range(12):
        synchronize(current)
        started = time.perf_counter()
        torch.mm(left, right)
        synchronize(current)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def alone(
    name: str, teacher: Architecture, student: Architecture, chosen: argparse.Namespace, current: Runtime, rate: float
) -> dict[str, Any]:
    """One variant's figures, or that the device's memory does not suffice."""
    again = Recomputation.FULL if name == RECOMPUTED else Recomputation.NONE
    job = job_of(chosen, activation_recomputation=again)
    try:
        return figures(name, teacher, student, job, chosen, current, rate)
    except torch.OutOfMemoryError as error:
        return {"outOfMemory": " ".join(str(error).split())[:200]}
    except Exception as error:
        if name in OURS:
            raise
        return {"failed": f"{type(error).__name__}: {error}"[:200]}


def figures(
    name: str,
    teacher: Architecture,
    student: Architecture,
    job: DistillJob,
    chosen: argparse.Namespace,
    current: Runtime,
    rate: float,
) -> dict[str, Any]:
    """Speed, memory and sections of one variant, which has the device to itself."""
    before = torch.cuda.memory_allocated(current.device) if current.on_gpu else 0
    batches, tokens = data(chosen, current), chosen.micro_batch * chosen.micro_batches * chosen.sequence
    step: Step
    if name == "kl_div":
        step = plain(teacher, student, job, current, batches)
    else:
        value = None if name in OURS else losses(current.on_gpu)[name]
        step = Combined(teacher, student, job, current, batches, value)
    for _ in range(2):  # the first rounds allocate and warm up
        step()
    seconds = [timed(step, current) for _ in range(chosen.rounds)]
    resident = torch.cuda.memory_allocated(current.device) - before if current.on_gpu else None
    beside = peak_of(step, current.device)
    fastest = statistics.median(seconds)
    operations = training_flops(student, chosen.sequence, teacher) * tokens
    found: dict[str, Any] = {
        "tokensPerSecond": tokens / fastest,
        "mfu": operations / fastest / rate,
        "loss": step(),
        "bytesOfPasses": beside,
        "residentBytes": resident,
    }
    if isinstance(step, Combined):
        found["sections"] = sections(step, current, chosen.rounds)
        found["plannedBytes"] = asdict(
            training_memory(
                student,
                micro_batch_size=chosen.micro_batch,
                sequence_length=chosen.sequence,
                precision=current.precision,
                copies=1,
                on_gpu=current.on_gpu,
                teacher=teacher,
                losses=job.distill.losses,
                recomputation=job.distill.activation_recomputation,
            )
        )
        if chosen.profile and name == "chunked":
            found["dearest"] = dearest(step, current)
    return found


def timed(step: Step, current: Runtime) -> float:
    """Seconds of one step."""
    synchronize(current)
    started = time.perf_counter()
    step()
    synchronize(current)
    return time.perf_counter() - started


def sections(step: Combined, current: Runtime, rounds: int) -> dict[str, float]:
    """Median seconds of each section of a step; `backward` is what is left of it."""
    found: dict[str, list[float]] = {name: [] for name in (*SECTIONS, "backward")}
    for _ in range(rounds):
        spent: dict[str, float] = dict.fromkeys(("forward", *SECTIONS), 0.0)
        with ExitStack() as stack:
            for owner, method, section in (
                (step.loss, "forward", "forward"),
                (step.model._teacher_model, "forward", "teacher"),
                (step.objective, "forward", "loss"),
                (step.optimizer, "gradient_norm", "optimizer"),
                (step.optimizer, "step", "optimizer"),
            ):
                stack.enter_context(clocked(owner, method, spent, section, current))
            whole = timed(step, current)
        forward = spent.pop("forward")
        spent["student"] = forward - spent["teacher"]
        for section in SECTIONS:
            found[section].append(spent[section])
        found["backward"].append(whole - forward - spent["loss"] - spent["optimizer"])
    return {section: statistics.median(times) for section, times in found.items()}


@contextmanager
def clocked(owner: Any, method: str, spent: dict[str, float], section: str, current: Runtime) -> Any:
    """Add the seconds of a method's calls to a section, inside this block."""
    original: Callable[..., Any] = getattr(owner, method)

    def call(*arguments: Any, **named: Any) -> Any:
        synchronize(current)
        started = time.perf_counter()
        result = original(*arguments, **named)
        synchronize(current)
        spent[section] += time.perf_counter() - started
        return result

    with mock.patch.object(owner, method, call):
        yield


def dearest(step: Step, current: Runtime) -> list[dict[str, Any]]:
    """The operations that take most of a step by themselves: name, calls, share of the time."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if current.on_gpu else [])]
    with profile(activities=activities) as recorded:
        step()
        synchronize(current)
    kind = "self_device_time_total" if current.on_gpu else "self_cpu_time_total"
    events: list[Any] = list(recorded.key_averages())
    whole = sum(getattr(event, kind) for event in events)
    events.sort(key=lambda event: getattr(event, kind), reverse=True)
    return [
        {"name": event.key[:120], "calls": event.count, "share": getattr(event, kind) / whole}
        for event in events[:DEAREST]
    ]


def table(report: dict[str, Any]) -> str:
    """For people."""
    lines = [
        "{device}, {dtype}; {vocabulary:,} words, sequences of {sequence:,}; teacher {teacherParameters:,} and student "
        "{studentParameters:,} parameters; matrix product {matrixTeraflops:.2f} TFLOP/s; load {load}".format(**report)
    ]
    for name, found in report["variants"].items():
        if "outOfMemory" in found:
            lines.append(f"{name:>12}  does not fit: {found['outOfMemory']}")
            continue
        if "failed" in found:
            lines.append(f"{name:>12}  failed: {found['failed']}")
            continue
        lines.append(
            f"{name:>12}  {found['tokensPerSecond']:,.0f} tokens/s, MFU {found['mfu']:.1%}, passes take "
            f"{found['bytesOfPasses'] / 1e9:.2f} GB"
            + (f" beside {found['residentBytes'] / 1e9:.1f} GB" if found["residentBytes"] else "")
            + f", loss {found['loss']:.6f}"
        )
        if times := found.get("sections"):
            whole = sum(times.values())
            lines.append(" " * 14 + ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in times.items()))
        lines += [f"{one['share']:>22.1%} {one['calls']:>6}x {one['name']}" for one in found.get("dearest", [])]
    lines.append(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
