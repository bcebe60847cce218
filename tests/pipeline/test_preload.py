"""What the fork server imports for a job is what the job's rank would import, and starts no thread."""

import json
import os
import subprocess
import sys

from compression_pipeline.config import PHASES, Phase
from compression_pipeline.config.forking import environment

_COMMON = {"run": "demo", "attempt": 1, "fingerprint": "0" * 32, "store": "/nowhere", "data": "d", "teacher": "t"}
_CONFIGS = {
    Phase.DISTILL: {
        "pruned": "p",
        "sequenceLength": 8,
        "distill": {"steps": 1, "globalBatchSize": 1},
        "validation": {},
    },
    Phase.EVALUATE: {"model": "m", "tasks": "t", "evaluate": {"tasks": [{"name": "piqa"}]}},
    Phase.EXPORT: {"pruned": "p", "distilled": "d", "export": {}},
}
_NEEDED = {
    Phase.DISTILL: ["megatron.core.optimizer", "modelopt.torch.distill", "compression_pipeline.megatron.training"],
    Phase.EVALUATE: ["lm_eval.evaluator", "transformers.models.auto.modeling_auto"],
    Phase.EXPORT: ["transformers.models.auto.modeling_auto"],
}
_PRELOAD = """
import json, os, sys
from compression_pipeline.config import Phase
from compression_pipeline.launcher.forkserver import preload

for phase, config in json.load(sys.stdin):
    preload(Phase(phase), json.dumps(config))
print(json.dumps([len(os.listdir("/proc/self/task")), list(sys.modules)]))
"""


def imported(order: list[Phase]) -> tuple[int, set[str]]:
    """Threads and modules of a server that has preloaded these phases in this order."""
    common = {name: value for name, value in _COMMON.items() if name not in ("data", "teacher")}
    jobs = [
        (phase, (common if phase is Phase.EVALUATE else _COMMON) | {"step": phase.value} | _CONFIGS[phase])
        for phase in order
    ]
    for phase, config in jobs:
        PHASES[phase].job.model_validate_json(json.dumps(config))  # or nothing would be imported
    done = subprocess.run(
        [sys.executable, "-c", _PRELOAD],
        input=json.dumps(jobs),
        env=environment(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    threads, modules = json.loads(done.stdout)
    return threads, set(modules)


def test_one_thread_runs_once_all_is_imported_whatever_came_first() -> None:
    threads, modules = imported([Phase.DISTILL, Phase.EVALUATE, Phase.EXPORT])
    assert threads == 1
    for phase, needed in _NEEDED.items():
        assert not set(needed) - modules, phase
    threads, otherwise = imported([Phase.EVALUATE, Phase.EXPORT, Phase.DISTILL])
    assert threads == 1
    # ModelOpt has plugins for whatever libraries it finds: it must not matter that transformers is there already.
    assert {name for name in modules ^ otherwise if name.startswith("modelopt")} == set()
