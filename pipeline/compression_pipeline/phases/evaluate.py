"""evaluate: score a model by tasks and measure how fast it generates. The phases of the teachers run it, too.

The model is the Hugging Face checkpoint that the phase before it wrote. A student's weights are rounded as export will
round them. A GPU computes in the type of the export, and in bfloat16 for a teacher; a CPU in float32. Needs no engine.
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from compression_pipeline.config import (
    SCORES,
    EvaluateJob,
    EvaluateResult,
    ExportDtype,
    Phase,
    Precision,
    TaskConfig,
    TaskScore,
)
from compression_pipeline.context import Context
from compression_pipeline.imports import import_transformers, preload_transformers
from compression_pipeline.phases.arithmetic import planned_precision
from compression_pipeline.store.system import processors
from compression_pipeline.tasks.generation import measure_generation, resident
from compression_pipeline.tasks.live import repeatable

FILE = "scores.json"

ARITHMETIC = {torch.bfloat16: "BF16", torch.float16: "FP16", torch.float32: "FP32"}
"""By what a model is computed in: its name in results."""


def preload(job: EvaluateJob) -> None:
    """Import what `run` imports late."""
    preload_transformers()
    if job.tasks:
        import_module("lm_eval.evaluator")
        for module in ("harness", "model", "scoring"):
            import_module(f"compression_pipeline.tasks.{module}")


def run(job: EvaluateJob, context: Context) -> EvaluateResult:
    """Publish `<phase>-<fingerprint>` with `scores.json`: by task, every figure of lm-eval. Raises UserError."""
    torch.set_num_threads(job.threads or processors())
    model_artifact = context.store.open(job.model)
    tasks = context.store.open(job.tasks) if job.tasks else None
    precision = planned_precision(Phase.EVALUATE)
    if precision is Precision.AUTO:
        precision = Precision.BF16 if torch.cuda.is_available() else Precision.FP32
    device = torch.device("cuda" if precision is Precision.BF16 else "cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used
    context.events.info(f"evaluates {job.model}")
    computed = computed_in(job.dtype, device)

    @cache  # only what is needed: all scores may be there
    def loaded() -> tuple[Any, Any]:
        library = import_transformers()
        model = load_model(library.AutoModelForCausalLM, model_artifact.model, job.dtype, computed, device)
        return model, library.AutoTokenizer.from_pretrained(
            model_artifact.model, local_files_only=True, trust_remote_code=False
        )

    settings = job.evaluate
    before = resident()
    generation = measure_generation(loaded()[0], settings.generation, before=before) if settings.generation else None
    scores, every, harness, artifacts = list[TaskScore](), dict[str, Any](), None, dict[str, str]()
    if tasks is not None:
        from compression_pipeline.phases.task_scores import find_or_score
        from compression_pipeline.tasks.harness import harness_version
        from compression_pipeline.tasks.scoring import measure, score_of

        harness = harness_version()

        def tick(done: int, total: int) -> None:
            context.stop_if_requested()
            context.events.progress(done, total, unit="requests", doing="score")

        def ask(task: TaskConfig) -> Mapping[str, Any]:
            with repeatable():
                return measure(*loaded(), tasks.path, settings, task, tick=tick)

        arithmetic = f"{ARITHMETIC[computed]} on {device.type}"
        for task, figures, name in find_or_score(job, context, model_artifact, tasks, arithmetic, ask):
            scores.append(score_of(task, figures))
            every[task.name] = figures["results"]
            artifacts |= {f"{SCORES}.{task.name}": name} if name else {}
    result = EvaluateResult(tasks=scores, generation=generation, harness=harness, precision=ARITHMETIC[computed])
    phase = phase_of(job)
    with context.store.draft(phase.value, job.fingerprint) as draft:
        (draft.path / FILE).write_text(json.dumps(every, indent=1, sort_keys=True) + "\n")
        published = draft.publish(
            config=job.to_json(),
            inputs={role: name for role in job.roles if (name := getattr(job, role, None))} | artifacts,
            result=result.to_json(),
        )
    return published.result(EvaluateResult)  # another job's, where that was first


def phase_of(job: EvaluateJob) -> Phase:
    """The phase whose job this is, of those that run this program."""
    if job.student is not None:
        return Phase.EVALUATE
    return Phase.BASELINE_CORRECTED if job.model.startswith(f"{Phase.FINETUNE}-") else Phase.BASELINE


def computed_in(dtype: ExportDtype | None, device: torch.device) -> torch.dtype:
    """What a model is computed in whose weights are rounded to `dtype`; None: they are as they are stored."""
    if device.type == "cpu":
        return torch.float32
    return getattr(torch, dtype.value) if dtype else torch.bfloat16


def load_model(
    factory: Any, folder: Path, dtype: ExportDtype | None, computed: torch.dtype, device: torch.device
) -> Any:
    """The checkpoint, its weights rounded to `dtype`, in the arithmetic of `computed`."""
    stored = getattr(torch, dtype.value) if dtype else "auto"
    model = factory.from_pretrained(folder, dtype=stored, local_files_only=True)
    return model.to(device=device, dtype=computed).eval()
