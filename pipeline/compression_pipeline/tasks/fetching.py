"""Fetches tasks: their definitions, and their questions as Parquet, so that scoring needs neither network nor source.

definitions.json              by task, as the manifest names it: a definition, or folders of lm-eval's own (null: all)
data/<digest>/<split>.parquet  questions
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import TemplateError

from compression_pipeline.config import TaskConfig, digest
from compression_pipeline.errors import PhaseError, TransientError, UserError, causes, disk_full, one_of
from compression_pipeline.sources.local import LocalSource

from . import definitions, harness

DEFINITIONS = "definitions.json"
DATA = "data"


@dataclass
class Fetched:
    """Tasks, fetched into a folder."""

    folder: Path
    definitions: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Digest of all that scores rest on: definitions, questions, and the version of lm-eval."""
        return digest({"phase": "tasks", "harness": harness.harness_version(), "tasks": self.definitions})

    @property
    def digests(self) -> dict[str, str]:
        """By task: `digest_of` it."""
        return {name: digest_of(told) for name, told in self.definitions.items()}

    def own(self, task: TaskConfig, source: LocalSource, where: str) -> None:
        """Take a task of the user's own. Raises PhaseError."""
        files = {file.name: file for file in source.task_files()}
        found = [
            (name, definition)
            for name in files
            if name.endswith((".yaml", ".yml"))
            and task.name.encode() in (text := _read(source, name))  # what is wrong with other tasks is not asked
            and (definition := definitions.read_definition(text, f"{task.source}/{name}"))
            and definition["task"] == task.name
        ]
        if len(found) != 1:
            why = f"{len(found)} files of {task.source} define it" if found else f"no YAML file of {task.source} does"
            raise UserError(f"{where}.name: {task.name} should be defined by one file, but {why}")
        [(name, definition)] = found
        place = f"{task.source}/{name}"
        base = PurePosixPath(name).parent
        marks: dict[str, list[str]] = {}
        splits: dict[str, pa.Table] = {}
        for split, names in definitions.data_files(definition, place).items():
            paths = [(base / one).as_posix() for one in names]
            if missing := [path for path in paths if path not in files]:
                raise UserError(f"{place}: {task.source} has no file {missing[0]}")
            marks[split] = [files[path].digest for path in paths]
            tables = [
                _table(_read(source, path), definition["dataset_path"], f"{task.source}/{path}") for path in paths
            ]
            splits[split] = pa.concat_tables(tables, promote_options="default")
        told = {name: value for name, value in definition.items() if name != "dataset_kwargs"}
        mark = digest({"files": marks})
        self._write(mark, splits)
        try:
            self._take(task, {"definition": told, "data": mark}, where)
        except (TemplateError, ValueError, LookupError, TypeError, AttributeError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(f"{place}: lm-eval can't make questions of it ({said})") from error

    def shipped(self, task: TaskConfig, where: str) -> None:
        """Take a task that lm-eval ships; its questions come from the Hub. Raises PhaseError."""
        folder = harness.folder_of(task.name)
        if folder is None:
            raise UserError(
                f"{where}.name: lm-eval {harness.harness_version()} has no task {task.name}; correct the name, or name "
                "the folder of your own task in source (a tag is no task: name those under it)"
            )
        folders = [folder] if folder != harness.BENCHMARKS else None
        data: dict[str, str] = {}

        def download(built: Any) -> Any:
            splits = _from_the_hub(built, task.name, where)
            place = _place(built)
            tables = {name: splits[name].data.table for name in sorted(splits) if name in _used(built)}
            data[place] = self._write(place, tables)
            return splits

        with harness.downloads(download):
            found = harness.shipped(task.name, folders)
        _refuse_code(found, where)
        self._take(task, {"folders": folders, "questions": data}, where)

    def _take(self, task: TaskConfig, told: Mapping[str, Any], where: str) -> None:
        self.definitions[task.name] = dict(told)
        check(load(task.name, self.definitions, self.folder), task, where)

    def _write(self, mark: str, splits: Mapping[str, pa.Table]) -> str:
        """Write the questions; returns the digest of the files."""
        place = self.folder / DATA / mark
        place.mkdir(parents=True, exist_ok=True)
        found: dict[str, str] = {}
        for name, table in splits.items():
            file = place / f"{name}.parquet"
            pq.write_table(table, file)
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        return digest(found)


def load(name: str, told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The tasks and groups of a fetched task, as lm-eval's TaskManager gives them. Needs no network.

    `told` may come from a store that others write into, so it is checked again. Raises UserError.
    """
    task = told[name]
    if "definition" in task:
        definitions.check_fields(task["definition"], name)
        return harness.own(task["definition"], _splits(folder / DATA / task["data"]))
    with harness.downloads(lambda built: _splits(folder / DATA / _place(built))):
        return harness.shipped(name, task["folders"])


def check(found: Mapping[str, Any], task: TaskConfig, where: str) -> None:
    """Refuse a task without one score, and settings that it has no use for. Raises UserError."""
    metrics = _metrics(found, task.name)
    if not metrics:
        raise UserError(
            f"{where}.name: {task.name} stands for several tasks, and lm-eval gives them no score together; name "
            f"{one_of(sorted(found['tasks']))}"
        )
    if task.metric and task.metric not in metrics:
        raise UserError(f"{where}.metric: {task.name} has no metric {task.metric}; choose {one_of(metrics)}")
    filters = _filters(found, task)
    if task.filter and task.filter not in filters:
        known = [name for name in filters if name != harness.UNFILTERED]
        fix = f"choose {one_of(known)}" if known else "remove filter"
        raise UserError(f"{where}.filter: {task.name} has no filter {task.filter}; {fix}")
    for name, built in found["tasks"].items():
        if task.shots and built.config.num_fewshot == 0:
            raise UserError(f"{where}.shots: {name} takes no solved examples; remove shots")
        if task.shots and built.fewshot_docs() is None:
            raise UserError(f"{where}.shots: {name} has no split to take solved examples from; remove shots")
        if harness.samples_replies(built):
            raise UserError(
                f"{where}.name: {name} draws its replies at random (do_sample), so no score of it could be repeated; "
                "use a task whose replies are greedy"
            )


def _metrics(found: Mapping[str, Any], name: str) -> list[str]:
    """Metrics that lm-eval tells of the task or group; none of a tag, which is a list of tasks."""
    if name in found["tasks"]:
        return list(found["tasks"][name].aggregation())
    group = found["groups"].get(name)
    return [told.metric for told in group.aggregate_metric_list or ()] if group else []


def _filters(found: Mapping[str, Any], task: TaskConfig) -> list[str]:
    """Filters by which lm-eval tells the metric that is asked for, of the task or group."""
    told: list[str] = []
    if (group := found["groups"].get(task.name)) is not None:
        for metric in group.aggregate_metric_list or ():
            if task.metric in (None, metric.metric):
                told += [metric.filter_list] if isinstance(metric.filter_list, str) else metric.filter_list or []
    return told or list(dict.fromkeys(name for built in found["tasks"].values() for name in harness.filters_of(built)))


def _splits(place: Path) -> Any:
    """The questions of a task by split, in memory."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return {file.stem: Dataset(InMemoryTable(pq.read_table(file))) for file in sorted(place.glob("*.parquet"))}


def _place(built: Any) -> str:
    """Folder of the questions of a task that lm-eval ships: tasks of one dataset share it."""
    kwargs = {name: value for name, value in (built.config.dataset_kwargs or {}).items() if name != "trust_remote_code"}
    return digest({"path": built.DATASET_PATH, "name": built.DATASET_NAME, "kwargs": kwargs, "splits": _used(built)})


def _used(built: Any) -> list[str]:
    """The splits that a task reads."""
    config = built.config
    names = (config.training_split, config.validation_split, config.test_split, config.fewshot_split)
    return sorted({name for name in (*names, built.fewshot_cfg.split) if name})


def _from_the_hub(built: Any, task: str, where: str) -> Any:
    import datasets
    from huggingface_hub.constants import HF_HUB_OFFLINE

    whose = f"{where}.name: {task} has its questions on the Hub ({built.DATASET_PATH})"
    if HF_HUB_OFFLINE:
        raise UserError(f"{whose}, which this job may not ask (HF_HUB_OFFLINE); use tasks of your own (source)")
    kwargs = {name: value for name, value in (built.config.dataset_kwargs or {}).items() if name != "trust_remote_code"}
    try:
        return datasets.load_dataset(path=built.DATASET_PATH, name=built.DATASET_NAME, **kwargs)
    except OSError as error:
        if disk_full(error):
            raise
        raise _hub_fault(error, whose, built.DATASET_PATH) from error
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{whose}, which cannot be read without running code: {said}") from error


def _hub_fault(error: OSError, whose: str, repository: str) -> PhaseError:
    """Whether the Hub refuses the questions, which the user has to mend, or cannot be reached, which passes."""
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub import errors

    chain = causes(error)
    access = "give the run a token that may read it (spec.teacher.secretRef; HF_TOKEN in a local run)"
    if any(isinstance(one, errors.GatedRepoError) for one in chain):
        page = f"https://huggingface.co/datasets/{repository}"
        return UserError(f"{whose}, which is gated; ask for access at {page} and {access}")
    refused = (errors.RepositoryNotFoundError, DatasetNotFoundError, DataFilesNotFoundError)
    statuses = {getattr(getattr(one, "response", None), "status_code", None) for one in chain}
    if any(isinstance(one, refused) for one in chain) or statuses & {401, 403}:
        return UserError(
            f"{whose}, which has no such data set, or a private one; {access}, or use tasks of your own (source)"
        )
    said = " ".join(str(error).split())[:300]
    return TransientError(f"{whose}, which cannot be reached; use tasks of your own (source) without it: {said}")


def _refuse_code(found: Mapping[str, Any], where: str) -> None:
    for name, built in found["tasks"].items():
        if getattr(built, "UNSAFE_CODE", False):
            raise UserError(f"{where}.name: {name} runs code that the model writes, which no job does")
        if getattr(built, "MULTIMODAL", False):
            raise UserError(f"{where}.name: {name} asks about images or sound, which these models don't take")


def _read(source: LocalSource, name: str) -> bytes:
    with source.open(source.path_of(name)) as file:
        return file.read()


def _table(content: bytes, kind: str, where: str) -> pa.Table:
    """The rows of a file. Raises UserError."""
    try:
        match kind:
            case "parquet":
                return pq.read_table(io.BytesIO(content))
            case "csv":
                rows: Any = list(csv.DictReader(io.StringIO(content.decode())))
            case _:
                text = content.decode()
                rows = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
        return pa.Table.from_pylist(rows)
    except (ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        raise UserError(f"{where} cannot be read as {kind}: {' '.join(str(error).split())[:200]}") from error


def _lines(text: str) -> list[Any]:
    # Not splitlines: U+2028 and its like may stand in a JSON string.
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def digest_of(definition: Any) -> str:
    """Of all that scores in one task rest on. `definition`: as `read_definitions` gives it."""
    return digest({"harness": harness.harness_version(), "task": definition})


def write_definitions(fetched: Fetched) -> None:
    """Write what `read_definitions` reads."""
    told = json.dumps(fetched.definitions, indent=1, sort_keys=True, ensure_ascii=False)
    (fetched.folder / DEFINITIONS).write_text(told + "\n", encoding="utf-8")


def read_definitions(folder: Path) -> dict[str, Any]:
    """Definitions by task."""
    return json.loads((folder / DEFINITIONS).read_text(encoding="utf-8"))
