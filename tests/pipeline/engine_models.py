"""Small models and jobs for the engine's tests."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch

from compression_pipeline.config import Architecture, FinetuneConfig, FinetuneJob, ValidationConfig


def architecture(**fields: Any) -> Architecture:
    """A Llama of 80 thousand parameters; `fields` replace its own."""
    shape: dict[str, Any] = {
        "family": "Llama",
        "layers": 2,
        "hidden_size": 48,
        "ffn_hidden_size": 96,
        "attention_heads": 4,
        "query_groups": 2,
        "head_dim": 12,
        "vocabulary_size": 320,
    }
    return Architecture(**(shape | fields))


def finetune_job(**fields: Any) -> FinetuneJob:
    """A finetune job of one thread; `fields` replace its own."""
    job: dict[str, Any] = {
        "run": "test",
        "step": "finetune",
        "attempt": 1,
        "fingerprint": "0" * 32,
        "store": "/nonexistent",
        "threads": 1,
        "data": "prepare-0",
        "teacher": "prepare-0",
        "sequence_length": 16,
        "finetune": FinetuneConfig(steps=1),
        "validation": ValidationConfig(),
    }
    return FinetuneJob(**(job | fields))


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter reproducible values: norms near 1, everything else normal with deviation 0.05."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.copy_(noise + 1 if "norm" in name else noise)


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    """A fresh interpreter that runs `code`, with this module at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
