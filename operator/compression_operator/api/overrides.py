"""`--set path=value`: a manifest changed from the command line."""

import re
from typing import cast

from .documents import Json, MalformedYaml, read_documents, scalar

_ROOTS = ("apiVersion", "kind", "metadata", "spec")
_STEP = re.compile(r"\.?([A-Za-z][A-Za-z0-9]*)|\[([^\[\]]+)\]")


class InvalidOverride(Exception):
    """An override that cannot be applied; its text says why."""


def override(document: dict[str, Json], assignment: str) -> dict[str, Json]:
    """`document` with `path=value` applied; the document itself stays as it is.

    The path starts at spec, or with spec or metadata (`distill.steps`, `spec.distill.steps`). Items of a list go by
    their index or by their name (`students[0].prune.layers`, `students[depth].prune.layers`). The value is YAML;
    `null` removes the field. Raises InvalidOverride.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise InvalidOverride("should be path=value, e.g. distill.steps=200")
    steps = _steps(path.strip())
    if steps[0] not in _ROOTS:
        steps = ["spec", *steps]
    return cast(dict[str, Json], _changed(document, steps, _value(text), ""))


def _steps(path: str) -> list[str | int]:
    found: list[str | int] = []
    end = 0
    while end < len(path):
        step = _STEP.match(path, end)
        if step is None or (found and step.group(1) and path[end] != "."):
            raise InvalidOverride(f"{path} is not a path; write it like students[0].prune.hiddenSize")
        name, item = step.groups()
        found.append(name if name else int(item) if item.isdecimal() else f"[{item}]")
        end = step.end()
    return found


def _value(text: str) -> Json:
    """Plain words and numbers as in a manifest; what starts like a list, an object or a quotation is YAML."""
    text = text.strip()
    try:
        if not text.startswith(("[", "{", "'", '"')):
            return scalar(text)
        documents = read_documents(text)
    except (MalformedYaml, ValueError) as error:
        raise InvalidOverride(str(error)) from None
    return documents[0] if documents else None


def _changed(node: Json, steps: list[str | int], value: Json, path: str) -> Json:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(step, str) and not step.startswith("["):
        if node is not None and not isinstance(node, dict):
            if isinstance(node, list):
                raise InvalidOverride(f"{path} is a list, so it has no {step}; write {path}[0] for its first item")
            raise InvalidOverride(f"{path or 'the manifest'} is not an object, so it has no {step}")
        child = _changed((node or {}).get(step), rest, value, f"{path}.{step}" if path else step)
        others = {key: other for key, other in (node or {}).items() if key != step}
        if child is None and not rest:
            return others
        return {**(node or {}), step: child}
    if not isinstance(node, list):
        raise InvalidOverride(f"{path} is no list")
    index = _index(node, step, path)
    child = _changed(node[index], rest, value, f"{path}[{index}]")
    kept = [child] if rest or child is not None else []
    return [*node[:index], *kept, *node[index + 1 :]]


def _index(items: list[Json], step: str | int, path: str) -> int:
    if isinstance(step, int):
        if step < len(items):
            return step
        raise InvalidOverride(f"{path} has no item {step}: it has {len(items)}, counted from 0")
    name = step[1:-1]
    names = [str(item.get("name")) for item in items if isinstance(item, dict)]
    if name in names:
        return next(i for i, item in enumerate(items) if isinstance(item, dict) and item.get("name") == name)
    raise InvalidOverride(f"{path} has no item named {name}; it has {', '.join(names) or 'none'}")
