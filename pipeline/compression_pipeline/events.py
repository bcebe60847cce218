"""What a job tells while it runs: one JSON object a line on stdout, read by the operator and the local backend."""

import json
import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any

from pydantic.alias_generators import to_camel

from .redaction import Redactor


def now() -> str:
    """The time in RFC 3339, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Events:
    """Writes events, without the secrets of the environment; a silent one (ranks other than 0) writes nothing."""

    def __init__(self, stream: IO[str] | None = None, *, silent: bool = False) -> None:
        """`stream`: where to, stdout by default."""
        self._stream = stream
        self._silent = silent
        self._redactor = Redactor.of()
        self._noted: dict[str, Any] = {}

    def note(self, **fields: Any) -> None:
        """What every line of progress tells from now on."""
        self._noted |= fields

    def progress(
        self,
        step: int,
        total: int,
        *,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        eta_seconds: float | None = None,
        unit: str = "steps",
        **extra: Any,
    ) -> None:
        """`step` of `total` units are done. `extra` fields are written in camelCase."""
        eta = round(eta_seconds) if eta_seconds is not None and math.isfinite(eta_seconds) else None
        self._write(
            "progress",
            step=step,
            totalSteps=total,
            unit=unit,
            loss=loss,
            tokensPerSecond=tokens_per_second,
            etaSeconds=eta,
            **{to_camel(name): value for name, value in {**self._noted, **extra}.items()},
        )

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """One figure worth keeping, e.g. a validation loss."""
        self._write("metric", name=name, value=value, step=step)

    def warning(self, message: str) -> None:
        """Something a person should know that doesn't end the job."""
        self._write("warning", message=message)

    def info(self, message: str) -> None:
        """What happens now."""
        self._write("info", message=message)

    def result(self, result: Mapping[str, Any]) -> None:
        """What the phase reports (a `*Result` as JSON)."""
        self._write("result", result=dict(result))

    def _write(self, event: str, **fields: Any) -> None:
        if self._silent:
            return
        told = self._redactor.value(_finite({"event": event, "time": now(), **fields}))
        line = json.dumps(told, ensure_ascii=False, allow_nan=False)
        stream = self._stream or sys.stdout
        try:
            stream.write(line + "\n")
            stream.flush()
        except OSError:
            # Whoever read the log is gone, or its disk is full; hours of training don't end for that.
            return


def _finite(value: Any) -> Any:
    """`value` without the numbers that JSON can't tell (NaN, infinities) and the fields that are None."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items() if v is not None and not _not_finite(v)}
    if isinstance(value, list | tuple):
        return [None if _not_finite(v) else _finite(v) for v in value]
    return value


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
