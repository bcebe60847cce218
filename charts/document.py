"""Writes the table of values into the chart's README from the comments in values.yaml: `python charts/document.py`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CHART = Path(__file__).resolve().parent / "compression-operator"
BEGIN, END = "<!-- values: written by `make crds` -->", "<!-- /values -->"


class Value(NamedTuple):
    """One documented value: its path, its default as JSON, and what it is for."""

    path: str
    default: str
    description: str


class Undocumented(Exception):
    """A value has no `# --` comment above it."""


def values(text: str) -> list[Value]:
    """The values of a values.yaml, in its order; a comment on a mapping speaks for all that is in it.

    Raises Undocumented.
    """
    return list(_walk(yaml.compose(text, Loader=yaml.SafeLoader), (), text.splitlines(), yaml.safe_load(text)))


def _walk(node: Any, above: tuple[str, ...], lines: list[str], data: dict[str, Any]) -> Iterator[Value]:
    for key, child in node.value:
        path, value = (*above, key.value), data[key.value]
        comment = re.match(r"\s*# -- (.+)", lines[key.start_mark.line - 1])
        if comment:
            yield Value(".".join(path), json.dumps(value), comment[1])
        elif isinstance(child, yaml.MappingNode) and value:
            yield from _walk(child, path, lines, value)
        else:
            raise Undocumented(f"values.yaml: {'.'.join(path)} needs a comment that begins with `# --` above it")


def table(listed: list[Value]) -> str:
    """The values as a Markdown table."""
    rows = [f"| `{value.path}` | `{value.default}` | {value.description} |" for value in listed]
    return "\n".join(["| value | default | what |", "|---|---|---|", *rows])


def documented(readme: str, listed: list[Value]) -> str:
    """The README with the table in its place."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(listed)}\n{END}{after}"


def main() -> None:
    readme = CHART / "README.md"
    readme.write_text(documented(readme.read_text(), values((CHART / "values.yaml").read_text())))


if __name__ == "__main__":
    main()
