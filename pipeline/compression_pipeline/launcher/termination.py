"""The termination message: what the operator believes of how a job ended."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from compression_pipeline.config import TERMINATION_MESSAGE_LIMIT, TERMINATION_VARIABLE, Termination

DEFAULT_PATH = Path("/dev/termination-log")


def path_of(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where the message goes; None outside a pod when nothing says where."""
    told = environment.get(TERMINATION_VARIABLE)
    if told:
        return Path(told)
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def write(termination: Termination, path: Path | None) -> None:
    """Write the message, as a whole where its folder lets us (in a pod it is a mounted file, written in place).

    A full or read-only disk is no reason to end otherwise: the exit code still tells the class.
    """
    if path is None:
        return
    text = fitted(termination)
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        with suppress(OSError):
            path.write_text(text)


def fitted(termination: Termination, limit: int = TERMINATION_MESSAGE_LIMIT) -> str:
    """The message as JSON of at most `limit` bytes: the longest texts in it are cut until it fits."""
    data: dict[str, Any] = termination.to_json()
    while True:
        said = Termination.model_validate(data)
        # Operators older than the field would refuse a message that has it.
        newer = None if said.missing else {"missing"}
        text = said.model_dump_json(by_alias=True, exclude_none=True, exclude=newer)
        excess = len(text.encode()) - limit
        if excess <= 0:
            return text
        holder, name = max(_texts(data), key=lambda place: len(place[0][place[1]].encode()), default=(None, ""))
        if holder is None or not holder[name]:
            raise ValueError(f"the result alone takes more than {limit} bytes")
        keep = max(0, len(holder[name]) - max(excess // 4, 1) - 1)
        holder[name] = holder[name][:keep] + ("…" if keep else "")


def _texts(data: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    found = [(data, name) for name, value in data.items() if isinstance(value, str) and name != "class"]
    for value in data.values():
        if isinstance(value, dict):
            found += _texts(value)
    return found
