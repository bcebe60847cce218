"""The parts of lm-eval that scoring stands on. Names that it does not promise are here and nowhere else."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lm_eval.tasks
import lm_eval.utils
from jinja2 import BaseLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api.metrics import mean  # noqa: F401 - registers the metrics
from lm_eval.api.registry import metric_registry
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm.std import tqdm

from compression_pipeline.errors import UserError

Download = Callable[[ConfigurableTask], Any]
"""Gives the splits of a task, by name."""

TASKS = Path(lm_eval.tasks.__file__).parent

BENCHMARKS = "benchmarks"
"""The folder of lm-eval's own whose groups are of tasks of the other folders."""

UNFILTERED = "none"
"""What lm-eval calls the filter of a task that names none."""


def harness_version() -> str:
    """lm-eval's version."""
    return version("lm_eval")


@contextmanager
def downloads(download: Download) -> Iterator[None]:
    """Lets tasks that lm-eval ships take their questions from `download` while they are built."""

    def instead(task: ConfigurableTask, dataset_kwargs: Any = None, **kwargs: Any) -> None:
        task.dataset = download(task)

    with patch.object(ConfigurableTask, "download", instead):
        yield


def shipped(name: str, folders: list[str] | None = None) -> dict[str, Any]:
    """The tasks and groups of this name that lm-eval ships, as its TaskManager gives them.

    `folders`: those of lm-eval's own to look into; None: all, which takes half a minute. Raises KeyError, and UserError
    for a folder that is not lm-eval's own: whose files it would run.
    """
    own_folders = {path.name for path in TASKS.iterdir()}
    if foreign := [folder for folder in folders or () if folder not in own_folders]:
        raise UserError(f"{name}: {foreign[0]} is no folder of lm-eval {harness_version()}; fetch the tasks again")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    include: list[str | Path] | None = [TASKS / folder for folder in folders] if folders is not None else None
    return dict(lm_eval.tasks.TaskManager(include_path=include, include_defaults=folders is None).load([name]))


def folder_of(name: str) -> str | None:
    """The folder of lm-eval's own whose files define a task or group of this name; None where none does."""
    for folder in sorted(path for path in TASKS.iterdir() if path.is_dir()):
        for file in folder.rglob("*.yaml"):
            text = file.read_text(encoding="utf-8", errors="replace")
            if name in text and any(line.split("#")[0].strip() in _named(name) for line in text.splitlines()):
                return folder.name
    return None


def _named(name: str) -> set[str]:
    return {f"{field}: {quote}{name}{quote}" for field in ("task", "group") for quote in ("", '"', "'")}


def samples_replies(task: ConfigurableTask) -> bool:
    """Whether the task asks for replies that are drawn at random."""
    told = task.config.generation_kwargs
    return bool(told and normalize_gen_kwargs(told).get("do_sample"))


def filters_of(task: ConfigurableTask) -> list[str]:
    """Names of the filters of the task's replies; `UNFILTERED` alone where it names none."""
    return [told["name"] for told in task.config.filter_list or []] or [UNFILTERED]


def own(definition: Mapping[str, Any], splits: Any) -> dict[str, Any]:
    """A user's own task, as a TaskManager would give it. Raises UserError."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for metric in definition.get("metric_list") or []:
        if metric["metric"] not in metric_registry:
            known = ", ".join(sorted(metric_registry))
            raise UserError(f"{definition['task']}: {metric['metric']} is no metric of lm-eval; choose one of {known}")
    with sandboxed():
        told = {name: value for name, value in definition.items() if name not in ("tag", "dataset_kwargs")}
        task = ConfigurableTask(config={**told, "custom_dataset": lambda **_: splits})
    return {"tasks": {definition["task"]: task}, "groups": {}, "group_map": {}}


@contextmanager
def without_bars() -> Iterator[None]:
    """Keeps lm-eval's progress bars out of the job's log, whoever has imported tqdm before."""
    begin = tqdm.__init__

    def begin_silently(bar: Any, *told: Any, **named: Any) -> None:
        begin(bar, *told, **(named | {"disable": True}))

    with patch.object(tqdm, "__init__", begin_silently):
        yield


@contextmanager
def sandboxed() -> Iterator[None]:
    """Lets lm-eval fill templates in a sandbox."""
    environment = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"regex_replace": lm_eval.utils.regex_replace}
    with patch.object(lm_eval.utils, "env", environment):
        yield
