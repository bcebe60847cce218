"""Definitions of a user's own tasks: lm-eval's YAML, read without running anything that stands in it.

lm-eval's own reader imports Python files that a YAML names (!function) and fills templates without a sandbox. Whoever
may write a shared volume could have a job run code so. Here a definition is data: what could name code is refused, and
`scoring` fills templates in a sandbox.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

from compression_pipeline.errors import UserError

DATA = {"json": (".jsonl", ".json"), "csv": (".csv",), "parquet": (".parquet",)}
"""Readers of `datasets`, as dataset_path names them, and the files that each reads."""

FIELDS = frozenset(
    {
        *("task", "task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs"),
        *("training_split", "validation_split", "test_split", "fewshot_split"),
        *("doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter", "fewshot_delimiter"),
        *("fewshot_config", "num_fewshot", "output_type", "generation_kwargs", "repeats", "filter_list", "metric_list"),
        *("should_decontaminate", "doc_to_decontamination_query", "gen_prefix", "metadata"),
    }
)
"""Fields of lm-eval's TaskConfig that name no code."""

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")

KINDS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("dataset_path", *SPLITS), (str, "a name")),
    **dict.fromkeys(("dataset_kwargs", "fewshot_config"), (dict, "a mapping")),
    "metric_list": (list, "a list"),
}
"""Fields that are looked into here, and what each should be."""


class _Loader(yaml.SafeLoader):
    """YAML's plain values; `!function` and every other tag is refused."""


def read_definition(text: bytes, where: str) -> dict[str, Any] | None:
    """The task that a YAML file defines; None where the file defines none (a group, say).

    `where` names the file for messages. Raises UserError.
    """
    try:
        found = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.constructor.ConstructorError as error:
        if "!function" in str(error):
            raise UserError(
                f"{where} names Python code (!function), which is not run from a source; write the field as a template"
            ) from None
        raise UserError(f"{where} is no plain YAML: {' '.join(str(error).split())[:200]}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict) or not isinstance(found.get("task"), str):
        return None
    check_fields(found, where)
    return found


def check_fields(found: Mapping[str, Any], where: str) -> None:
    """Refuse what a definition may not say. Raises UserError."""
    if "include" in found:
        raise UserError(f"{where}: include is not supported; write what it includes into the file")
    unknown = sorted(str(name) for name in found.keys() - FIELDS)
    if unknown:
        raise UserError(f"{where}: {unknown[0]} is not supported in tasks of your own; remove it")
    for field, (kind, words) in KINDS.items():
        if not isinstance(found.get(field) or kind(), kind):
            raise UserError(f"{where}: {field} should be {words}")
    if found.get("dataset_path") not in DATA:
        raise UserError(
            f"{where}: dataset_path should be one of {', '.join(DATA)}, with the files in dataset_kwargs.data_files; "
            "data from the Hub is for the tasks that lm-eval ships"
        )
    for metric in found.get("metric_list") or []:
        if not isinstance(metric, dict) or not isinstance(metric.get("metric"), str) or metric.get("hf_evaluate"):
            raise UserError(f"{where}: metric_list should name metrics of lm-eval; code from the Hub is not run")
    sampler = (found.get("fewshot_config") or {}).get("sampler", "default")
    if sampler not in ("default", "first_n"):
        raise UserError(f"{where}: fewshot_config.sampler should be default or first_n")


def data_files(found: Mapping[str, Any], where: str) -> dict[str, list[str]]:
    """By split: the files with its questions, relative to the definition's folder. Raises UserError."""
    told = (found.get("dataset_kwargs") or {}).get("data_files")
    if not isinstance(told, dict) or not told:
        raise UserError(f"{where}: dataset_kwargs.data_files should name a file for each split, e.g. test: test.jsonl")
    files: dict[str, list[str]] = {}
    for split, names in told.items():
        listed = [names] if isinstance(names, str) else names
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise UserError(f"{where}: dataset_kwargs.data_files.{split} should be a file name or a list of them")
        for name in listed:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(f"{where}: {name} is not in the folder of the task; move it there")
            if not name.endswith(DATA[found["dataset_path"]]):
                raise UserError(f"{where}: {name} is no {found['dataset_path']} file")
        files[str(split)] = listed
    for field in SPLITS:
        if (split := found.get(field)) and split not in files:
            raise UserError(f"{where}: {field} is {split}, which dataset_kwargs.data_files has no file for")
    return files
