"""JSON against a structural schema, as the API server does it: unknown fields, defaults, constraints.

Faults name the path and the constraint that the API server would name, in words of one line.
"""

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any, cast

from .documents import Json
from .faults import Finding
from .schema import Schema

_SHOWN = 80
_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_NAMES = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "an integer",
    "number": "a number",
}


def with_defaults(schema: Schema, value: Json) -> Json:
    """`value` with the schema's defaults filled in. A field that is null counts as absent, as on the API server."""
    if isinstance(value, dict) and "properties" in schema:
        properties = cast(dict[str, Schema], schema["properties"])
        filled = {key: child for key, child in value.items() if child is not None or key not in properties}
        for name, child in properties.items():
            if name in filled or "default" in child:
                filled[name] = with_defaults(child, filled.get(name, child.get("default")))
        return filled
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(schema["items"], item) for item in value]
    return value


def findings(schema: Schema, value: Json, path: str = "") -> Iterator[Finding]:
    """Everything in `value` (after `with_defaults`) that the schema does not take."""
    if schema.get("x-kubernetes-int-or-string"):
        if type(value) is int:
            yield from _number(schema, value, path)
        elif isinstance(value, str):
            yield from _string(schema, value, path)
        else:
            yield path, f"{shown(value)} must be an integer or a string"
        return
    if not _is_a(schema["type"], value):
        yield path, f"{shown(value)} must be {_NAMES[schema['type']]}"
        return
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(str(choice) for choice in schema["enum"])
        yield path, f"{shown(value)} is not supported, supported: {supported}{_meant(value, schema['enum'])}"
    if isinstance(value, str):
        yield from _string(schema, value, path)
    elif isinstance(value, dict):
        yield from _object(schema, value, path)
    elif isinstance(value, list):
        yield from _array(schema, value, path)
    elif type(value) in (int, float):
        yield from _number(schema, cast(float, value), path)


def shown(value: Json) -> str:
    """`value` as short JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def pattern_of(schema: Schema) -> re.Pattern[str]:
    """The schema's pattern as the API server (RE2) reads it: `$` is the end of the text, not of its last line."""
    return re.compile(re.sub(r"\$$", r"\\Z", schema["pattern"]))


def _is_a(kind: str, value: Json) -> bool:
    return isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _string(schema: Schema, value: str, path: str) -> Iterator[Finding]:
    shortest, longest = schema.get("minLength", 0), schema.get("maxLength")
    if len(value) < shortest:
        yield path, f"{shown(value)} should be at least {_count(shortest, 'character')} long"
    elif longest is not None and len(value) > longest:
        yield path, f"{shown(value)} should be at most {_count(longest, 'character')} long, is {len(value)}"
    elif "pattern" in schema and not pattern_of(schema).search(value):
        example = f", e.g. {schema['example']}" if "example" in schema else ""
        yield path, f"{shown(value)} should match {schema['pattern']}{example}"


def _number(schema: Schema, value: float, path: str) -> Iterator[Finding]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and schema.get("exclusiveMinimum") and value <= least:
        yield path, f"{value} should be greater than {least}"
    elif least is not None and value < least:
        yield path, f"{value} should be greater than or equal to {least}"
    elif most is not None and schema.get("exclusiveMaximum") and value >= most:
        yield path, f"{value} should be less than {most}"
    elif most is not None and value > most:
        yield path, f"{value} should be less than or equal to {most}"


def _object(schema: Schema, value: dict[str, Json], path: str) -> Iterator[Finding]:
    properties: dict[str, Schema] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield join(path, name), f"is required{_purpose(properties[name])}"
    most = schema.get("maxProperties")
    if most is not None and len(value) > most:
        yield path, f"should have at most {_count(most, 'entry')}, has {len(value)}"
    for name, child in value.items():
        below = properties.get(name, schema.get("additionalProperties"))
        if below is not None:
            yield from findings(below, child, join(path, name))
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            known = f"; known: {', '.join(properties)}" if len(properties) <= 8 else ""
            yield join(path, name), f"unknown field{_meant(name, list(properties)) or known}"


def _array(schema: Schema, value: list[Json], path: str) -> Iterator[Finding]:
    fewest, most = schema.get("minItems", 0), schema.get("maxItems")
    if len(value) < fewest:
        yield path, f"should have at least {_count(fewest, 'item')}"
    elif most is not None and len(value) > most:
        yield path, f"should have at most {_count(most, 'item')}, has {len(value)}"
    for index, item in enumerate(value):
        yield from findings(schema["items"], item, f"{path}[{index}]")
    seen: set[str] = set()
    for index, item in enumerate(value):
        identity = _identity(schema, item)
        if identity is not None and identity in seen:
            yield f"{path}[{index}]", f"{identity} is given twice; keep one"
        seen |= {identity} if identity is not None else set()


def _identity(schema: Schema, item: Json) -> str | None:
    """What must be unique of an item, as it is shown; None where nothing has to be."""
    match schema.get("x-kubernetes-list-type"):
        case "set":
            return shown(item)
        case "map" if isinstance(item, dict):
            keys: list[str] = schema["x-kubernetes-list-map-keys"]
            return ", ".join(f"{key} {shown(item[key])}" for key in keys) if all(key in item for key in keys) else None
        case _:
            return None


def _meant(word: Any, known: list[Any]) -> str:
    """A question where `word` is close to a known one, also in another case or with underscores."""
    if len(known) < 2:
        return ""
    plain = {str(name).replace("_", "").lower(): name for name in known}
    close = difflib.get_close_matches(str(word).replace("_", "").lower(), plain, n=1, cutoff=0.7)
    return f", did you mean {plain[close[0]]}?" if close else ""


def _purpose(schema: Schema) -> str:
    """The first sentence of a field's description."""
    sentence = re.split(r"[.;] |\.$", schema.get("description", ""))[0]
    return f": {sentence[0].lower()}{sentence[1:]}" if sentence else ""


def _count(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def join(path: str, name: str) -> str:
    """The path of field `name` of the object at `path`."""
    return f"{path}.{name}" if path else name
