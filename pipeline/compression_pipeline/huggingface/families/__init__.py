"""The model families that round-trip without loss, one file each. A new one is a file here and a line in `FAMILIES`."""

from collections.abc import Mapping
from typing import Any

from compression_pipeline.config import Family
from compression_pipeline.errors import UserError

from .base import HuggingFaceFamily
from .llama import Llama
from .mistral import Mistral
from .qwen2 import Qwen2
from .qwen3 import Qwen3

FAMILIES: tuple[HuggingFaceFamily, ...] = (Llama(), Mistral(), Qwen2(), Qwen3())

__all__ = ["FAMILIES", "HuggingFaceFamily", "family_of_config", "member"]


def member(family: Family) -> HuggingFaceFamily:
    """The member of the registry for `family`."""
    return next(each for each in FAMILIES if each.family is family)


def family_of_config(config: Mapping[str, Any], file: str) -> HuggingFaceFamily:
    """The family of a config.json: by `architectures`, or by `model_type` where that is missing.

    Raises UserError, with the list of the known ones, for any other. `file` is how the sentence names the file.
    """
    names = config.get("architectures") or []
    for each in FAMILIES:
        if each.class_name in names or (not names and config.get("model_type") == each.model_type):
            return each
    found = ", ".join(map(str, names)) or config.get("model_type") or "none"
    known = ", ".join(each.class_name for each in FAMILIES)
    raise UserError(f"{file}: architecture {found} is not supported; use a model of one of these: {known}")
