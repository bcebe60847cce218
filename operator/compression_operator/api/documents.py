"""YAML as kubectl reads it (sigs.k8s.io/yaml over go-yaml 2, then JSON), with the line of every mistake.

PyYAML follows YAML 1.1 to the letter, go-yaml 2 doesn't: `1e-4` is a number, a date stays a string, `1:30` is no
base-60 number, and keys are strings. `yes` and `on` are booleans in both. Whole floats below 1e21 become integers on
their way through JSON. Stricter than kubectl in one thing: a key given twice is refused.
"""

import math
import re
from typing import Any, TypeAlias

import yaml

Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

_TAG = "tag:yaml.org,2002:"
_PLAIN = "?"
_KINDS: dict[str, tuple[type, ...]] = {
    _PLAIN: (str, bool, int, float, type(None)),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "null": (type(None),),
}
_MAXIMUM_NODES = 200_000
_WORDS: dict[str, Json] = {
    **{word: True for text in ("y", "yes", "true", "on") for word in (text, text.capitalize(), text.upper())},
    **{word: False for text in ("n", "no", "false", "off") for word in (text, text.capitalize(), text.upper())},
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
}
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INTEGERS = (
    (re.compile(r"[-+]?(0|[1-9][0-9]*)"), 10),
    (re.compile(r"[-+]?0[xX][0-9a-fA-F]+"), 16),
    (re.compile(r"[-+]?0[oO]?[0-7]+"), 8),
    (re.compile(r"[-+]?0[bB][01]+"), 2),
)


class MalformedYaml(Exception):
    """Text that is no YAML, or YAML that is no JSON. `line` and `column` count from 1."""

    def __init__(self, message: str, mark: yaml.Mark | None) -> None:
        super().__init__(message)
        self.message = message
        self.line = None if mark is None else mark.line + 1
        self.column = None if mark is None else mark.column + 1


class _Loader(yaml.SafeLoader):
    """Composes nodes and leaves plain scalars unresolved, for `scalar` to resolve them."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else f"{_TAG}str"
        return f"{_TAG}seq" if kind is yaml.SequenceNode else f"{_TAG}map"


def read_documents(text: str) -> list[Json]:
    """The documents in `text`, empty ones left out. Raises MalformedYaml."""
    try:
        nodes = list(yaml.compose_all(text, Loader=_Loader))
        documents = [_Converter().convert(node) for node in nodes]
    except yaml.MarkedYAMLError as error:
        problem = f"{error.problem} {error.context or ''}".strip()
        if error.problem_mark is not None and error.problem and "'\\t'" in error.problem:
            problem = "a tab; indent with spaces"
        raise MalformedYaml(f"is not YAML: {problem}", error.problem_mark) from None
    except yaml.YAMLError:  # the reader's, which is the only one without a mark
        raise MalformedYaml("is not YAML: it contains control characters", None) from None
    except RecursionError:
        raise MalformedYaml("is nested too deeply", None) from None
    return [document for document in documents if document is not None]


def scalar(text: str) -> Json:
    """What a plain (unquoted) scalar means to kubectl. Raises ValueError for what JSON can't say."""
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a valid JSON number; give a finite one")
    if text[0] not in "+-.0123456789":
        return text
    digits = text.replace("_", "")
    for form, base in _INTEGERS:
        if form.fullmatch(digits):
            whole = int(digits, base) if base != 8 else int(digits.lower().replace("o", ""), 8)
            return whole if -(2**63) <= whole < 2**64 else _number(float(whole))
    if _FLOAT.fullmatch(digits) and math.isfinite(float(digits)):
        return _number(float(digits))
    return text


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


class _Converter:
    """Turns the nodes of one document into JSON."""

    def __init__(self) -> None:
        self._open: list[yaml.Node] = []
        self._count = 0

    def convert(self, node: yaml.Node) -> Json:
        self._count += 1
        if any(node is parent for parent in self._open):
            raise MalformedYaml("an alias contains itself", node.start_mark)
        if self._count > _MAXIMUM_NODES:
            raise MalformedYaml("is too large, because aliases multiply it", node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.convert(child) for child in node.value]
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node)
        finally:
            self._open.pop()
        raise MalformedYaml(f"{node.tag} is not supported", node.start_mark)

    def _scalar(self, node: yaml.ScalarNode) -> Json:
        tag = node.tag.removeprefix(_TAG)
        if tag == "str":
            return node.value
        kinds = _KINDS.get(tag)
        if kinds is None:
            raise MalformedYaml(f"tag {node.tag} is not supported; remove it", node.start_mark)
        try:
            value = scalar(node.value)
        except ValueError as error:
            raise MalformedYaml(str(error), node.start_mark) from None
        if type(value) not in kinds:
            raise MalformedYaml(f"{node.value} is no {tag}; remove the tag", node.start_mark)
        return value

    def _mapping(self, node: yaml.MappingNode) -> Json:
        own: dict[str, Json] = {}
        merged: dict[str, Json] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise MalformedYaml("a key must be a word, not a list or an object", key_node.start_mark)
            if key_node.tag == _PLAIN and key_node.value == "<<":
                merged = {**self._merge(value_node), **merged}
                continue
            key = self._key(key_node)
            if key in own:
                raise MalformedYaml(f"{key} is given twice; keep one", key_node.start_mark)
            own[key] = self.convert(value_node)
        return {**merged, **own}

    def _key(self, node: yaml.ScalarNode) -> str:
        value = self._scalar(node)
        if isinstance(value, bool):
            return "true" if value else "false"
        return "null" if value is None else str(value)

    def _merge(self, node: yaml.Node) -> dict[str, Json]:
        value = self.convert(node)
        merged: dict[str, Json] = {}
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                raise MalformedYaml("<< takes an object or a list of objects", node.start_mark)
            merged = {**part, **merged}
        return merged
