"""The rotary positions that a config.json describes, in each of the spellings that transformers has had."""

from collections.abc import Iterator, Mapping
from typing import Any

FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""The scalings of rotary positions that Megatron computes here as Hugging Face does, and the fields they need."""

PLACES = ("rope_scaling", "rope_parameters")
"""Where transformers until 4 and since 5 keep them; the latter with the base inside."""

_SOURCE = "copy config.json from the model's source again"


def scaling(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling of positions with its type under `rope_type`; None where they are not scaled."""
    for found in _scalings(config):
        if _kind(found) != "default":
            rest = {key: value for key, value in found.items() if key not in ("type", "rope_theta", "rope_type")}
            rest.pop("partial_rotary_factor", None)  # has a place of its own
            return {**rest, "rope_type": _kind(found)}
    return None


def theta(config: Mapping[str, Any], default: float) -> float:
    """The base of the rotary frequencies."""
    return next(iter(_thetas(config).values()), default)


def fraction(config: Mapping[str, Any], default: float) -> float:
    """The share of a head's channels that is rotated."""
    return next(iter(_fractions(config)), default)


def faults(config: Mapping[str, Any], *, partial: bool) -> Iterator[str]:
    """Reasons, as clauses, why positions would not be computed here as the model was trained with. `partial`: whether
    models of the family may rotate a part of each head.
    """
    for place in PLACES:
        found = config.get(place)
        if found is not None and not isinstance(found, Mapping):
            yield f"{place} is {found!r}, not a JSON object; {_SOURCE}"
            return
    for found in _scalings(config):
        if any(isinstance(value, Mapping) for value in found.values()):
            yield "rope_parameters differ by type of layer, which is not supported; use another model"
            return
    fractions = _fractions(config)
    for value in fractions:
        if not partial and value != 1:
            yield f"partial_rotary_factor is {value}, and this family rotates whole heads; use another model"
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            yield f"partial_rotary_factor is {value!r}, not a number above 0 and up to 1; {_SOURCE}"
    if len(set(map(str, fractions))) > 1:
        yield f"partial_rotary_factor is given twice ({' and '.join(map(str, fractions))}); keep the right one"
    bases = _thetas(config)
    if len(set(bases.values())) > 1:
        said = " and ".join(f"{place} says {value}" for place, value in bases.items())
        yield f"the rotary base is given twice ({said}); keep the one that the model was trained with"
    for found in _scalings(config):
        yield from _scaling_faults(found)
    kinds = [found for found in _scalings(config) if _kind(found) != "default"]
    if len(kinds) > 1 and scaling({"rope_scaling": kinds[0]}) != scaling({"rope_scaling": kinds[1]}):
        yield "rope_scaling and rope_parameters differ; keep the one that the model was trained with"


def _scaling_faults(found: Mapping[str, Any]) -> Iterator[str]:
    kind = _kind(found)
    if kind == "default":
        if "factor" in found and found["factor"] not in (None, 1):
            yield f"rope_scaling has a factor ({found['factor']}) and no rope_type that uses it; {_SOURCE}"
    elif kind not in FIELDS:
        known = " and ".join(FIELDS)
        yield f"rope_scaling of type {kind} is not supported, only {known}; remove it or use another model"
    else:
        for key in FIELDS[kind]:
            value = found.get(key)
            if value is None:
                yield f"rope_scaling of type {kind} lacks {key}; {_SOURCE}"
            elif isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                yield f"rope_scaling's {key} is {value!r}, not a number above 0; {_SOURCE}"


def _scalings(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [config[place] for place in PLACES if config.get(place)]


def _fractions(config: Mapping[str, Any]) -> list[Any]:
    found = [
        config.get("partial_rotary_factor"),
        *(one.get("partial_rotary_factor") for one in _scalings(config)),
    ]
    return [value for value in found if value is not None]


def _kind(found: Mapping[str, Any]) -> Any:
    return found.get("rope_type") or found.get("type") or "default"


def _thetas(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every base that is told, by its place; the newest spelling first."""
    inside = {place: (config.get(place) or {}).get("rope_theta") for place in reversed(PLACES)}
    found = {"rope_theta": config.get("rope_theta"), **inside}
    return {place: value for place, value in found.items() if value is not None}
