"""Scores a Hugging Face model by fetched tasks."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compression_pipeline.config import EvaluateConfig, TaskConfig, TaskScore
from compression_pipeline.errors import UserError

from .fetching import load, read_definitions
from .harness import UNFILTERED

BOOTSTRAPS = 1000
"""Samples of the bootstrap by which lm-eval estimates the standard error of metrics that are no means."""


def score(
    model: Any, tokenizer: Any, folder: Path, settings: EvaluateConfig, *, tick: Any = lambda done, total: None
) -> tuple[list[TaskScore], dict[str, Any]]:
    """What `model` scores in the tasks of `settings`, which an artifact of the phase tasks in `folder` holds: the
    scores in the manifest's order, and by task every figure that lm-eval tells.

    The same model, tasks and settings give the same bits on one device. Raises UserError for a task that was not
    fetched.
    """
    every = {task.name: measure(model, tokenizer, folder, settings, task, tick=tick) for task in settings.tasks}
    scores = [score_of(task, every[task.name]) for task in settings.tasks]
    return scores, {name: figures["results"] for name, figures in every.items()}


def measure(
    model: Any,
    tokenizer: Any,
    folder: Path,
    settings: EvaluateConfig,
    task: TaskConfig,
    *,
    tick: Any = lambda done, total: None,
) -> dict[str, Any]:
    """What lm-eval tells of `model` in one task of `settings`, by every metric and filter, as JSON. See `score`."""
    told = read_definitions(folder)
    if task.name not in told:
        raise UserError(f"evaluate.tasks[{settings.tasks.index(task)}].name: {task.name} was not fetched")
    found = load(task.name, told, folder)
    figures = _evaluate(model, tokenizer, found, task, settings.batch_size, tick)
    kept = {name: figures[name] for name in ("results", "n-samples", "higher_is_better")}
    shots = max((built.config.num_fewshot or 0 for built in found["tasks"].values()), default=0)
    return json.loads(json.dumps({**kept, "shots": shots}, default=_plain))


def _plain(value: Any) -> Any:
    """A figure of numpy as Python's."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _evaluate(
    model: Any, tokenizer: Any, found: Mapping[str, Any], task: TaskConfig, batch_size: int, tick: Any
) -> Mapping[str, Any]:
    from lm_eval.evaluator import evaluate

    from .harness import sandboxed, without_bars
    from .model import HuggingFaceModel

    for built in found["tasks"].values():
        shots = task.shots if task.shots is not None else built.config.num_fewshot
        built.set_config(key="num_fewshot", value=shots or 0)
        built.set_fewshot_seed(seed=task.seed)
    random.seed(task.seed)
    np.random.seed(task.seed)
    torch.manual_seed(task.seed)
    asked = HuggingFaceModel(model, tokenizer, batch_size=batch_size, tick=tick)
    with sandboxed(), without_bars():
        return evaluate(asked, dict(found), limit=task.limit, bootstrap_iters=BOOTSTRAPS, log_samples=False)  # pyright: ignore


def score_of(task: TaskConfig, figures: Mapping[str, Any]) -> TaskScore:
    """The metric that is asked for, of the group where the task is one. Raises UserError where there is none."""
    told = figures["results"][task.name]
    metrics = [key for key in told if "," in key and "_stderr," not in key]
    named = [key.partition(",") for key in metrics]
    wanted = [key for key in named if task.metric in (None, key[0]) and task.filter in (None, key[2])]
    if not wanted:
        asked = ",".join(part for part in (task.metric, task.filter) if part)
        raise UserError(f"evaluate: {task.name} has no metric {asked}; choose one of {', '.join(metrics)}")
    metric, _, how = wanted[0]
    error = told.get(f"{metric}_stderr,{how}")
    samples = told.get("sample_len")
    if not isinstance(samples, int):
        samples = sum(count["effective"] for count in figures["n-samples"].values())
    better = figures["higher_is_better"].get(task.name, {}).get(metric)
    return TaskScore(
        name=task.name,
        metric=metric,
        filter=how if how != UNFILTERED else None,
        score=float(told["".join(wanted[0])]),
        stderr=float(error) if isinstance(error, int | float) else None,
        samples=samples,
        shots=figures["shots"],
        higher_is_better=better is not False,
    )
