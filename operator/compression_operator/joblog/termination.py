"""Termination messages, which the pipeline writes and anything else may have written. Pure."""

import json
import re
from typing import Any, cast

from pydantic import ValidationError

from compression_pipeline.config import Termination

SURROGATE = re.compile("[\ud800-\udfff]")
"""What Python makes of a byte that is no UTF-8, in a file's name perhaps. JSON can say it, no API server takes it."""


def read_termination(text: str | bytes) -> Termination | None:
    """The message, lone surrogates in it replaced by U+FFFD; None where it is not one, but the end of a log, say."""
    try:
        return Termination.model_validate(_printable(json.loads(text)))
    except (ValueError, ValidationError, RecursionError):
        return None


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_printable(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {_printable(name): _printable(item) for name, item in cast(dict[Any, Any], value).items()}
    return value
