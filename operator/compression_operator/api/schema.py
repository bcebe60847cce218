"""Pydantic models as Kubernetes structural schemas: the form that a CRD takes, and that local runs check too."""

from typing import Any, TypeAlias

from pydantic import BaseModel

Schema: TypeAlias = dict[str, Any]

_KEPT = {
    "type", "format", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties", "description", "required",
}  # fmt: skip


class NotStructural(Exception):
    """A model says something that a structural schema cannot say."""


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of `model` (apiextensions v1): references inlined, nothing nullable, defaults visible.

    Raises NotStructural where the model uses a form that Kubernetes does not take.
    """
    root = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(root, root.get("$defs", {}))


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    node = _resolved(node, definitions)
    if _is_int_or_string(node):
        return _int_or_string(node)
    found: Schema = {}
    for key, value in node.items():
        match key:
            case "properties":
                found[key] = {name: _structural(child, definitions) for name, child in value.items()}
            case "items":
                found[key] = _structural(value, definitions)
            case "additionalProperties":
                if isinstance(value, dict):
                    found[key] = _structural(value, definitions)  # pyright: ignore[reportUnknownArgumentType]  # JSON
            case "exclusiveMinimum":  # OpenAPI 3.0 says it with a flag
                found |= {"minimum": value, key: True}
            case "exclusiveMaximum":
                found |= {"maximum": value, key: True}
            case "const":
                found["enum"] = [value]
            case "examples":
                found["example"] = value[0]
            case "default":
                if "properties" in node and value is not None:
                    found[key] = {}  # its fields have the defaults; an empty object makes the API server add them
                elif value not in (None, [], {}):
                    found[key] = value
            case "title" | "$defs":
                pass
            case _ if key in _KEPT or key.startswith("x-kubernetes-"):
                found[key] = " ".join(value.split()) if key == "description" else value
            case _:
                raise NotStructural(f"{key} has no place in a structural schema: {node}")
    if "type" not in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        raise NotStructural(f"no type: {node}")
    return dict(sorted(found.items(), key=lambda item: _ORDER.get(item[0], len(_ORDER))))


_ORDER = {key: place for place, key in enumerate(("description", "type", "format", "enum", "default"))}


def _resolved(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """`node` without references and without the ways in which pydantic says "or None"."""
    while True:
        siblings = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        if "$ref" in node:
            node = {**definitions[node["$ref"].removeprefix("#/$defs/")], **siblings}
            continue
        choices = [choice for choice in node.get("anyOf", ()) if choice.get("type") != "null"]
        if len(choices) != 1:
            return node
        node = {**choices[0], **siblings}


def _is_int_or_string(node: Schema) -> bool:
    return [choice.get("type") for choice in node.get("anyOf", ())] == ["integer", "string"]


def _int_or_string(node: Schema) -> Schema:
    bounds = {
        key: value
        for choice in node["anyOf"]
        for key, value in choice.items()
        if key in ("minimum", "maximum", "minLength", "maxLength", "pattern", "examples")
    }
    if "examples" in bounds:
        bounds["example"] = bounds.pop("examples")[0]
    rest = {key: value for key, value in node.items() if key == "description"}
    return {
        **rest,
        "x-kubernetes-int-or-string": True,
        **bounds,
    }
