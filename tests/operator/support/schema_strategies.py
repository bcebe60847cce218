"""Hypothesis strategies for what a structural schema takes."""

from typing import Any

from hypothesis import strategies as st

Json = Any

SOURCES = [
    "hf://owner/name", "hf://gpt2", "file:text/*.txt", "file:.", "pvc://claim/path", "pvc://claim/a/b", "pvc://claim/a/..b",
    "pvc://claim/../b", "pvc://claim/a/..", "hf://", "hf://a/b/c", "meta-llama/Llama", "file:", "pvc://claim/", "s3://b/k",
    "hf://owner/name\n", "file:a\nb",
]  # fmt: skip
SUB_PATHS = ["a", "a/b", "/a", "..", "a/..", "a/../b", "..a", "a..", "a/..b", "/"]
SPLITS = ["train", "validation", "test"]


def instances(schema: dict[str, Any], name: str = "") -> st.SearchStrategy[Json]:
    """Values that `schema` takes. `name` is the field's: some rules need likely values to be seen at work."""
    if name in ("model", "source"):
        return st.sampled_from(SOURCES)
    if name == "subPath":
        return st.sampled_from(SUB_PATHS)
    if name in ("trainSplit", "validationSplit"):
        return st.sampled_from(SPLITS)
    if schema.get("x-kubernetes-int-or-string"):
        return st.integers(0, 10**6) | _strings(schema)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema.get("type"):
        case "object":
            return _objects(schema)
        case "array":
            most = min(schema.get("maxItems", 3), 3)
            keys = schema.get("x-kubernetes-list-map-keys", ["name"])
            unique = {"set": lambda item: item, "map": lambda item: item[keys[0]]}
            key = unique.get(schema.get("x-kubernetes-list-type", ""))
            return st.lists(
                instances(schema["items"]), min_size=schema.get("minItems", 0), max_size=most, unique_by=key
            )
        case "integer":
            least, most = schema.get("minimum", -(10**6)), schema.get("maximum", 10**6)
            return st.integers(least, min(most, least + 40)) | st.integers(least, most)
        case "number":
            return st.floats(
                schema.get("minimum", -1e6),
                schema.get("maximum", 1e6),
                exclude_min=schema.get("exclusiveMinimum", False),
                exclude_max=schema.get("exclusiveMaximum", False),
            )
        case "boolean":
            return st.booleans()
        case "string":
            return _strings(schema)
        case other:
            raise AssertionError(f"no strategy for {other}")


def _strings(schema: dict[str, Any]) -> st.SearchStrategy[str]:
    least, most = schema.get("minLength", 0), schema.get("maxLength", 20)
    if schema.get("format") == "date-time":
        return st.just("2026-01-01T00:00:00Z")
    if "pattern" in schema:
        texts = st.from_regex(schema["pattern"].replace("$", r"\Z"))
        return texts.filter(lambda text: least <= len(text) <= most)
    return st.text(min_size=least, max_size=min(most, 20))


def _objects(schema: dict[str, Any]) -> st.SearchStrategy[Json]:
    properties: dict[str, Any] = schema.get("properties", {})
    if not properties:
        values = schema.get("additionalProperties")
        return (
            st.builds(dict)
            if values is None
            else st.dictionaries(st.sampled_from("abc"), instances(values), max_size=2)
        )
    required = {key: instances(properties[key], key) for key in schema.get("required", ())}
    optional = {key: instances(child, key) for key, child in properties.items() if key not in required}
    return st.fixed_dictionaries(required, optional=optional)
