"""How fast a Hugging Face model generates: tokens per second, time to the first token, peak memory."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from compression_pipeline.config import GenerationConfig, GenerationFigures
from compression_pipeline.huggingface.sample import greedily

SEED = 1234
MEMORY = Path("/proc/self")
PROCESSORS = Path("/proc/cpuinfo")


def measure_generation(model: Any, settings: GenerationConfig, *, before: int | None) -> GenerationFigures:
    """Generate greedily from random prompts, the same for every model of one vocabulary, and take the median.

    `before`: bytes of memory of this process before the model was loaded (`resident`), of which the peak is told on
    CPU.
    """
    device = next(model.parameters()).device
    chooser = torch.Generator().manual_seed(SEED)
    shape = (settings.batch_size, settings.prompt_tokens)
    prompts = torch.randint(model.config.vocab_size, shape, generator=chooser).to(device)
    _generate(model, prompts, 2)  # the first call of all loads kernels
    _forget_peak(device)
    first = [_seconds(model, prompts, 1) for _ in range(settings.repeats)]
    whole = [_seconds(model, prompts, settings.new_tokens) for _ in range(settings.repeats)]
    soonest, total = statistics.median(first), statistics.median(whole)
    later = settings.batch_size * (settings.new_tokens - 1)
    return GenerationFigures(
        tokens_per_second=later / max(total - soonest, 1e-9),
        first_token_seconds=soonest,
        peak_memory_bytes=_peak(device, before),
        device=device_name(device),
    )


def device_name(device: torch.device) -> str:
    """What figures of speed are of: the GPU's model, or the CPU's with the threads that compute; "CPU" where the kernel
    tells no model.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = (line.partition(":")[2] for line in lines if line.startswith("model name"))
    model = " ".join(next(told, "").split())[:100] or "CPU"
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"


def resident(field: str = "VmRSS") -> int | None:
    """Bytes of memory that this process holds; VmHWM: that it has held at most. None where the kernel doesn't tell."""
    try:
        lines = (MEMORY / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _seconds(model: Any, prompts: torch.Tensor, tokens: int) -> float:
    begun = time.perf_counter()
    _generate(model, prompts, tokens)
    if prompts.device.type == "cuda":
        torch.cuda.synchronize(prompts.device)
    return time.perf_counter() - begun


@torch.no_grad()
def _generate(model: Any, prompts: torch.Tensor, tokens: int) -> None:
    model.generate(prompts, attention_mask=torch.ones_like(prompts), **greedily(model, tokens, least=tokens))


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        (MEMORY / "clear_refs").write_text("5")  # the kernel begins a new VmHWM
    except OSError:
        return


def _peak(device: torch.device, before: int | None) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resident("VmHWM")
    return None if most is None or before is None else max(0, most - before)
