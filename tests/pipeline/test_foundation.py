"""An image with Apex and Transformer Engine trains as one without."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stores import DATA, TEACHER, common, context, make_store

from compression_pipeline.artifact import Store
from compression_pipeline.config import (
    DistillConfig,
    DistillJob,
    FinetuneConfig,
    FinetuneJob,
    JobConfig,
    PruneConfig,
    PruneJob,
    ValidationConfig,
)
from compression_pipeline.megatron.runtime import Runtime
from compression_pipeline.phases import distill, finetune, prune

REFUSES = """
class Refuses:
    def __init__(self, *arguments, **named):
        raise AssertionError(f"{type(self).__module__}.{type(self).__name__} is used")

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    made = type(name, (Refuses,), {"__module__": __name__})
    globals()[name] = made
    return made
"""
"""A module that has every class that is asked for, as long as nobody makes one."""

MODULES = {
    "apex": ("optimizers", "normalization/fused_layer_norm", "multi_tensor_apply", "contrib/layer_norm/layer_norm"),
    "transformer_engine": (
        "pytorch/optimizers",
        "pytorch/fp8",
        "pytorch/tensor",
        "pytorch/module/linear",
        "common/recipe",
    ),
}

CODE = """
import json, os
from compression_pipeline.context import Context
from compression_pipeline.config import PHASES, Phase
import importlib
for phase, told in json.loads(os.environ["JOBS"]):
    job = PHASES[Phase(phase)].job.model_validate(told)
    importlib.import_module(f"compression_pipeline.phases.{phase}").run(job, Context.of(job))
"""


def with_stubs(folder: Path) -> Path:
    """A folder of packages that can be imported as those of NVIDIA's images can."""
    for package, modules in MODULES.items():
        for module in modules:
            path = folder / package / module
            path.mkdir(parents=True)
            for place in (path, *path.parents):
                if folder in place.parents:
                    (place / "__init__.py").write_text('__version__ = "2.5.0"\n' + REFUSES)
    return folder


def jobs(store: Store) -> list[tuple[str, JobConfig]]:
    shared: dict[str, Any] = {"data": DATA, "sequence_length": 32}
    settings: dict[str, Any] = {"steps": 3, "global_batch_size": 4, "micro_batch_size": 4, "warmup_steps": 1}
    validation = ValidationConfig(samples=4)
    corrected, pruned = "finetune-" + "1" * 32, "prune-" + "2" * 32
    sizes = PruneConfig(hidden_size=32, ffn_hidden_size=64, drop_layers=[2], divisor=8, calibration_samples=4)
    return [
        (
            "finetune",
            FinetuneJob(
                **common(store, "finetune", "1" * 32),
                **shared,
                teacher=TEACHER,
                finetune=FinetuneConfig(**settings),
                validation=validation,
            ),
        ),
        ("prune", PruneJob(**common(store, "prune", "2" * 32), **shared, teacher=corrected, prune=sizes)),
        (
            "distill",
            DistillJob(
                **common(store, "distill", "3" * 32),
                **shared,
                teacher=corrected,
                pruned=pruned,
                distill=DistillConfig(**settings),
                validation=validation,
            ),
        ),
    ]


def histories(store: Store) -> list[Any]:
    """All losses, without the speed; and what pruning chose."""
    found: list[Any] = []
    for name in ("finetune-" + "1" * 32, "distill-" + "3" * 32):
        history = json.loads((store.open(name).path / "history.json").read_text())
        for entry in history["train"]:
            del entry["tokensPerSecond"]
        found.append(history)
    return [*found, json.loads((store.open("prune-" + "2" * 32).path / "chosen.json").read_text())]


@pytest.mark.parametrize("kind", ["qwen3"])  # with norms in the heads, too
def test_every_phase_that_trains_takes_the_same_path(
    tmp_path: Path, engine: Runtime, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    store, plain = make_store(tmp_path / "stubs", kind), make_store(tmp_path / "plain", kind)
    told = json.dumps([(phase, job.to_json()) for phase, job in jobs(store)])
    path = os.pathsep.join([str(with_stubs(tmp_path / "path")), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "PYTHONPATH": path, "JOBS": told},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    first = json.loads(process.stdout.splitlines()[0])
    assert first["event"] == "info"
    assert first["message"].startswith("stands on torch ")
    assert "CPU, 1 thread, gloo" in first["message"]
    assert first["message"].endswith("; precision: FP32; found and not used: apex, transformer_engine")

    monkeypatch.setattr("compression_pipeline.megatron.engine.runtime", lambda job, **_: contextlib.nullcontext(engine))
    for phase, module in (("finetune", finetune), ("prune", prune), ("distill", distill)):
        job = dict(jobs(plain))[phase]
        module.run(job, context(plain, job.fingerprint)[0])  # pyright: ignore[reportArgumentType]
    assert histories(store) == histories(plain)
