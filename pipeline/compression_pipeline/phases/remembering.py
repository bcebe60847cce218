"""What an attempt has measured of a model, for those that go on with the step: nothing is measured twice."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_pipeline.config import TaskScore
from compression_pipeline.context import Context
from compression_pipeline.engines import Engine
from compression_pipeline.text.batches import ValidationLoss


@dataclass(frozen=True)
class Measured:
    """The validation loss of a model, which may be no number, and its score in a task if one was asked."""

    loss: ValidationLoss
    score: TaskScore | None = None

    @property
    def sound(self) -> bool:
        """Whether the loss is a number."""
        return math.isfinite(self.loss.loss)

    def to_json(self) -> dict[str, Any]:
        score = {"score": self.score.to_json()} if self.score is not None else {}
        return {"value": self.loss.loss, "bySource": self.loss.by_source, **score}

    @classmethod
    def of_json(cls, told: dict[str, Any]) -> "Measured":
        """Raises ValueError, KeyError or TypeError for what is not `to_json`'s."""
        loss = ValidationLoss(float(told["value"]), tuple(map(float, told.get("bySource", ()))))
        return cls(loss, TaskScore.model_validate(told["score"]) if "score" in told else None)


def remembered(
    context: Context,
    fingerprint: str,
    engine: Engine,
    name: str,
    measured_on: Any,
    measure: Callable[[], Measured],
    *,
    failures: bool = False,
) -> Measured:
    """What an attempt at the step has measured under this name, or what is measured now; every rank calls it.

    `measured_on`: what it depends on beside the fingerprint, for JSON; measured on something else it is another figure.
    `failures`: whether a loss that is no number is remembered, too.
    """
    known: Measured | None = None
    if engine.rank == 0:
        attempts = context.store.earlier_attempts(fingerprint)
        found = (_read(folder / f"{name}.json", measured_on) for folder in attempts)
        known = next((one for one in found if one is not None and (failures or one.sound)), None)
    known = engine.agree(known)
    if known is not None:
        return known
    value = measure()
    if engine.rank == 0 and (failures or value.sound):
        told = {"measuredOn": measured_on, **value.to_json()}
        (context.folder / f"{name}.json").write_text(json.dumps(told))
    return value


def _read(path: Path, measured_on: Any) -> Measured | None:
    try:
        content = json.loads(path.read_text())
        return Measured.of_json(content) if content["measuredOn"] == measured_on else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
