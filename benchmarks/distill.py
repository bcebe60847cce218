"""Distillation steps and their losses side by side, in one process: time, memory and parity.

    python benchmarks/distill.py [--vocabulary 32768] [--micro-batch 8] [--json] ...

All variants train the same student (random weights, same data) with float32 on CPU and bfloat16 on GPU:

- kl_div: what one writes without a library: two plain forward passes, `torch.nn.functional.kl_div`, backward, gradient
  clipping, torch's AdamW;
- modelopt: our training loop around ModelOpt's distillation with its own LogitsKLLoss;
- fused: the same with our loss on all logits;
- liger: the same with Liger's chunked loss in plain torch;
- chunked: what the distill phase runs.

`step` is a whole training step. `loss` is both output layers and the loss of a micro batch, forward and backward,
alone. Rounds alternate between the variants, so that a busy machine slows all of them, and the figures are medians. The
seconds of a processor (`by CPU`) are changed less by what else runs there. `peak` are bytes beyond those that were
there before; a step's do not count weights, gradients and states, which are the same for all.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import torch
from distill_losses import Value, losses
from llama import llama, parser_of
from peak import peak_of
from torch.nn.functional import kl_div, log_softmax

from compression_pipeline.config import Architecture, DistillConfig, DistillJob, ValidationConfig
from compression_pipeline.losses import Head
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.private import Criterion, replace_output_layer
from compression_pipeline.megatron.runtime import Runtime, runtime

Step = Callable[[], float]
PARTS = "loss", "step"
LIBRARIES = "torch", "megatron-core", "nvidia-modelopt", "liger-kernel"


def main() -> None:
    """Measure and print."""
    sizes = {"student_hidden": 96, "student_ffn": 256, "micro_batch": 16, "micro_batches": 1}
    parser = parser_of(__doc__, **sizes, rounds=20, threads=0)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; default: both")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    job = job_of(chosen)
    with runtime(job) as current:
        report = measure(job, chosen, current)
    sys.stdout.write(json.dumps(report) + "\n" if chosen.json else table(report))


def job_of(chosen: argparse.Namespace, **settings: Any) -> DistillJob:
    """A distillation of the chosen sizes; `settings` are of its phase."""
    return DistillJob(
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
        distill=DistillConfig(steps=1, warmup_steps=0, micro_batch_size=chosen.micro_batch, **settings),
        validation=ValidationConfig(),
    )


def table(report: dict[str, Any]) -> str:
    """For people: ratios to ModelOpt's."""
    lines = [
        "{device}, {threads} threads, {dtype}; {vocabulary:,} words, {tokensPerStep:,} tokens a step; teacher "
        "{teacherParameters:,} and student {studentParameters:,} parameters; load {load}".format(**report),
        f"{'':>15}{'tokens/s':>10}{'ratio':>8}{'by CPU':>8}{'peak MiB':>10}{'ratio':>8}{'loss after':>14}",
    ]
    for part in filter(report.__contains__, PARTS):
        base = report[part]["modelopt"]
        for name, found in report[part].items():
            lines.append(
                f"{part} {name}".rjust(15)
                + f"{found['tokensPerSecond']:>10,.0f}{found['tokensPerSecond'] / base['tokensPerSecond']:>7.2f}x"
                + f"{base['processorSeconds'] / found['processorSeconds']:>7.2f}x"
                + f"{found['peak'] / 2**20:>9,.0f}{found['peak'] / base['peak']:>8.3f}x{found['value']:>14.7f}"
            )
    lines.append(", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    return "\n".join(lines) + "\n"


def measure(job: DistillJob, chosen: argparse.Namespace, current: Runtime) -> dict[str, Any]:
    """All variants in turn, and what they were measured on."""
    teacher = llama(chosen, chosen.hidden, chosen.ffn)
    student = llama(chosen, chosen.student_hidden, chosen.student_ffn)
    values, batches = losses(current.on_gpu), data(chosen, current)
    tokens = chosen.micro_batch * chosen.micro_batches * chosen.sequence
    wanted = chosen.part or PARTS
    found: dict[str, Any] = {}
    if "loss" in wanted:
        found["loss"] = in_turn(
            heads(values, teacher, student, chosen, current), chosen.rounds, tokens // chosen.micro_batches, current
        )
    if "step" in wanted:
        steps = {
            name: plain(teacher, student, job, current, batches)
            if name == "kl_div"
            else Combined(teacher, student, job, current, batches, value if name != "chunked" else None)
            for name, value in values.items()
        }
        found["step"] = in_turn(steps, chosen.rounds, tokens, current)
    return {**measured_on(chosen, teacher, student, current), "tokensPerStep": tokens, "rounds": chosen.rounds, **found}


def measured_on(
    chosen: argparse.Namespace, teacher: Architecture, student: Architecture, current: Runtime
) -> dict[str, Any]:
    """The machine, the models and the versions of a measurement."""
    return {
        "device": torch.cuda.get_device_name(current.device) if current.on_gpu else "CPU",
        "threads": current.threads,
        "load": round(os.getloadavg()[0], 1),
        "dtype": str(current.dtype).removeprefix("torch."),
        "vocabulary": chosen.vocabulary,
        "sequence": chosen.sequence,
        "teacherParameters": teacher.parameters,
        "studentParameters": student.parameters,
        "versions": {name: version(name) for name in LIBRARIES},
    }


def in_turn(steps: dict[str, Step], rounds: int, tokens: int, current: Runtime) -> dict[str, dict[str, float]]:
    """What each of them gives at last, how quickly, and with which memory."""
    wall: dict[str, list[float]] = {name: [] for name in steps}
    busy: dict[str, list[float]] = {name: [] for name in steps}
    values: dict[str, float] = {}
    for number in range(rounds + 2):
        for name, step in steps.items():
            synchronize(current)
            started, used = time.perf_counter(), time.process_time()
            values[name] = step()
            synchronize(current)
            if number >= 2:  # the first rounds allocate and warm up
                wall[name].append(time.perf_counter() - started)
                busy[name].append(time.process_time() - used)
    return {
        name: {
            "tokensPerSecond": tokens / statistics.median(wall[name]),
            "processorSeconds": statistics.median(busy[name]),
            "peak": peak_of(step, current.device),
            "value": values[name],
        }
        for name, step in steps.items()
    }


def heads(
    values: dict[str, Value], teacher: Architecture, student: Architecture, chosen: argparse.Namespace, current: Runtime
) -> dict[str, Step]:
    """Output layers and loss of one micro batch alone, forward and backward."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(current.device, current.dtype)

    shape, words = (chosen.sequence, chosen.micro_batch), chosen.vocabulary
    labels = torch.zeros(shape, dtype=torch.int64, device=current.device)
    mine, theirs = (
        Head(numbers(*shape, of.hidden_size), numbers(words, of.hidden_size, scale=0.1)) for of in (student, teacher)
    )
    for tensor in (mine.hidden, mine.weight):
        tensor.requires_grad_()

    def of(value: Value) -> Step:
        def step() -> float:
            found = value(mine, theirs, labels)
            found.backward()
            mine.hidden.grad = mine.weight.grad = None  # here, so that the next step's are counted in its peak
            return found.item()

        return step

    return {name: of(value) for name, value in values.items()}


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
    generator = torch.Generator(current.device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, device=current.device) * 0.02
            parameter.copy_(noise + 1 if "norm" in name else noise)
    return model


def plain(teacher: Architecture, student: Architecture, job: DistillJob, current: Runtime, batches: list[Any]) -> Step:
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


class OfHeads(Criterion):
    """A loss of two output layers in the place of our `Objective`."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        self._value = value
        self._seen: dict[str, Head] = {}

    def attach(self, student: Any, teacher: Any) -> None:
        for name, model in (("student", student), ("teacher", teacher)):
            replace_output_layer(model, lambda hidden, weight, name=name: self._see(name, Head(hidden, weight)))

    def _see(self, name: str, head: Head) -> bool:
        self._seen[name] = head
        return True

    @contextlib.contextmanager
    def captured(self, labels: torch.Tensor, weights: Any = None) -> Iterator[None]:
        self._labels = labels.transpose(0, 1)
        yield

    def forward(self, student: Any, teacher: Any) -> torch.Tensor:
        return self._value(self._seen.pop("student"), self._seen.pop("teacher"), self._labels)


class Combined:
    """A step of the distill phase; with `value` as its loss, if there is one."""

    def __init__(
        self,
        teacher: Architecture,
        student: Architecture,
        job: DistillJob,
        current: Runtime,
        batches: list[Any],
        value: Value | None = None,
    ) -> None:
        from compression_pipeline.megatron.distillation import DistillationLoss, combine
        from compression_pipeline.megatron.objective import Objective
        from compression_pipeline.megatron.optimizer import Optimizer
        from compression_pipeline.megatron.recomputation import recompute
        from compression_pipeline.megatron.training import data_parallel

        self._length, self._settings, self._batches = job.sequence_length, job.distill, batches
        big = random_model(teacher, current, self._length, 1).eval()
        small = random_model(student, current, self._length, 2)
        self.objective: Any = (
            Objective.of(self._settings.losses, teacher, student, current, seed=self._settings.seed)
            if value is None
            else OfHeads(value)
        )
        self.model = combine(small, big, self.objective)
        recompute(self.model, self._settings.activation_recomputation)
        self._wrapped = data_parallel(self.model)
        self._wrapped.train()
        self.optimizer = Optimizer(self._wrapped, self._settings, current)
        self.loss = DistillationLoss(self.model, self.objective)

    def __call__(self) -> float:
        """Train one step; returns the loss."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self._wrapped.zero_grad_buffer()
        self.optimizer.zero_gradients()
        iterator: Any = iter(self._batches)
        results = get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=iterator,
            model=self._wrapped,
            num_microbatches=len(self._batches),
            seq_length=self._length,
            micro_batch_size=self._settings.micro_batch_size,
            forward_only=False,
        )
        norm = self.optimizer.gradient_norm()
        self.optimizer.step(self._settings.learning_rate, norm)
        return sum(float(result["loss"]) for result in results) / len(results)

    def _forward(self, iterator: Any, module: torch.nn.Module) -> Any:
        batch = next(iterator)

        def reduce(output: torch.Tensor) -> Any:
            value = self.loss.reduce(output, batch)
            return value, {"loss": value.detach().clone()}

        return self.loss.forward(module, batch), reduce


def synchronize(current: Runtime) -> None:
    """Wait for the GPU, where there is one."""
    if current.on_gpu:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
