"""Time of measuring importance on all axes, beside a plain forward pass over the same text, in the same process.

    python benchmarks/importance.py [--json] [--hidden 128 ...]

One teacher with random weights, float32 on CPU (processor time) and bfloat16 on GPU (wall time). Rounds alternate
between the variants, so that a busy machine slows all of them; figures are medians, ratios are to the plain forward
pass, which gives logits.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from llama import llama, parser_of

from compression_pipeline.config import (
    Aggregation,
    AggregationConfig,
    ImportanceConfig,
    PruneConfig,
    PruneJob,
)
from compression_pipeline.importance import Samples, measure, scorers
from compression_pipeline.megatron.model import build
from compression_pipeline.megatron.runtime import Runtime, runtime

AGGREGATIONS = {
    "mean, L2 (default)": AggregationConfig(),
    "L2, mean": AggregationConfig(sequence=Aggregation.L2, batch=Aggregation.MEAN),
    "variance, variance": AggregationConfig(sequence=Aggregation.VARIANCE, batch=Aggregation.VARIANCE),
}


def main() -> None:
    """Measure and print."""
    chosen = parser_of(__doc__, batch=16, passes=2, rounds=11, threads=1).parse_args()
    warnings.simplefilter("ignore")
    told = {"run": "benchmark", "step": "prune", "attempt": 1, "fingerprint": "0" * 32, "store": "/nonexistent"}
    job = PruneJob(
        **told,
        threads=chosen.threads,
        data="",
        teacher="",
        sequence_length=chosen.sequence,
        prune=PruneConfig(layers=1),
    )
    with runtime(job) as current:
        report = compare(chosen, current)
    if chosen.json:
        sys.stdout.write(json.dumps(report) + "\n")
        return
    lines = [f"{'':24}{'ms':>9}{'ratio':>8}"]
    lines += [f"{name:24}{found['ms']:9.1f}{found['ratio']:8.3f}" for name, found in report["variants"].items()]
    sys.stdout.write("\n".join([*lines, f"on {report['device']}, {report['tokens']:,} tokens a round", ""]))


def compare(chosen: argparse.Namespace, current: Runtime) -> dict[str, Any]:
    """Medians over all rounds, of every variant."""
    architecture = llama(chosen, chosen.hidden, chosen.ffn)
    model = build(architecture, current, sequence_length=chosen.sequence).eval()
    generator = torch.Generator(current.device).manual_seed(0)

    def on_device(*shape: int) -> torch.Tensor:
        return torch.randint(chosen.vocabulary, shape, generator=generator, device=current.device)

    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, device=current.device)
            parameter.copy_(noise * 0.02)
    positions = torch.arange(chosen.sequence, device=current.device).expand(chosen.batch, -1)
    batches = [(on_device(chosen.batch, chosen.sequence), positions) for _ in range(chosen.passes)]

    def forward(*, logits: bool) -> None:
        model.post_process = logits
        with torch.no_grad():
            for tokens, places in batches:
                model(tokens, places, None)
        model.post_process = True

    axes = scorers(ImportanceConfig())
    variants: dict[str, Callable[[], Any]] = {
        "plain forward": lambda: forward(logits=True),
        "forward without logits": lambda: forward(logits=False),
    }
    for name, how in AGGREGATIONS.items():
        variants[f"all axes: {name}"] = lambda how=how: measure(model, architecture, Samples(batches), axes, how)
    # Processor time of one thread says the same on a busy machine; a GPU's can't be had so.
    clock = time.perf_counter if current.device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(chosen.rounds + 1):  # the first warms up
        for name, run in variants.items():
            started = clock()
            run()
            if current.device.type == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(clock() - started)
    plain = statistics.median(times["plain forward"])
    return {
        "device": str(current.device),
        "tokens": chosen.batch * chosen.sequence * chosen.passes,
        "variants": {
            name: {"ms": 1000 * statistics.median(found), "ratio": statistics.median(found) / plain}
            for name, found in times.items()
        },
    }


if __name__ == "__main__":
    main()
