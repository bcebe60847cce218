"""Fingerprints: a hash of what a step makes, and of nothing else.

In: the schema version, the phase's semantic fields that differ from their defaults, the keys of its inputs. Out: names,
absolute paths, images, resources, layouts, intervals, secrets (fields marked `Operational` never enter).
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .base import Operational, Unordered
from .members import TYPE, Member

SCHEMA_VERSION = 2
"""Raised when the meaning of an artifact changes, so that nothing older is taken for it."""

KEY_LENGTH = 32
"""Hex digits of a key: 128 bits of SHA-256, short enough for a Kubernetes label value."""


def semantic_fields(model: BaseModel) -> dict[str, Any]:
    """The fields of `model` that shape what is made, in camelCase, those at their default left out."""
    found: dict[str, Any] = {}
    for name, (field, default, unless) in _fields(type(model)).items():
        value = getattr(model, name)
        if (unless and getattr(model, unless) is None) or (not field.is_required() and value == default):
            continue
        alias = field.alias or name
        if isinstance(value, BaseModel):
            found[alias] = _semantic(value)
        elif (
            isinstance(value, list) and value and all(isinstance(item, BaseModel) for item in cast("list[Any]", value))
        ):
            found[alias] = [_semantic(item) for item in cast("list[BaseModel]", value)]
        else:
            found[alias] = model.model_dump(mode="json", by_alias=True, include={name})[alias]
            if any(isinstance(mark, Unordered) for mark in field.metadata):
                found[alias] = sorted(set(found[alias]))
    return found


@cache
def _fields(kind: type[BaseModel]) -> dict[str, tuple[FieldInfo, Any, str | None]]:
    """Name -> field, default, and the field without which it is Operational, of those that may shape what is made.
    Every reconciliation of a run asks.
    """
    found: dict[str, tuple[FieldInfo, Any, str | None]] = {}
    for name, field in kind.model_fields.items():
        mark = next((mark for mark in field.metadata if isinstance(mark, Operational)), None)
        if mark is None or mark.unless is not None:
            found[name] = field, field.get_default(call_default_factory=True), mark and mark.unless
    return found


def _semantic(model: BaseModel) -> dict[str, Any]:
    """`semantic_fields` of a part of a model, and which member of its table it is."""
    kind = {TYPE: model.type} if isinstance(model, Member) else {}
    return {**kind, **semantic_fields(model)}


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, cut to `KEY_LENGTH` hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def fingerprint(
    phase: str, configuration: Mapping[str, BaseModel | str | int | None], inputs: Mapping[str, str]
) -> str:
    """Fingerprint of one step.

    `configuration` maps the name of each configuration block of the phase (e.g. "distill") to its model or
    plain value, `inputs` the role of each input (e.g. "data", "teacher") to the key of the artifact that fills it.
    """
    blocks = {
        name: semantic_fields(block) if isinstance(block, BaseModel) else block
        for name, block in configuration.items()
        if block is not None
    }
    return digest({"version": SCHEMA_VERSION, "phase": phase, "configuration": blocks, "inputs": dict(inputs)})


def measuring(key: str, measures: Mapping[str, BaseModel]) -> str:
    """Fingerprint of a step that makes the artifact of this key and measures it in these ways; the key itself where all
    of them are at their defaults.

    What only measures is no part of the key, so that to measure otherwise makes nothing anew.
    """
    told = {name: fields for name, block in measures.items() if (fields := semantic_fields(block))}
    return digest({"artifact": key, "measures": told}) if told else key
