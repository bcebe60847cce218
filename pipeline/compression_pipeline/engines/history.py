"""What a training phase remembers of its steps: `history.json`, and the same as TensorBoard scalars."""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel, to_snake

from compression_pipeline.config import Passes, TaskScore

TENSORBOARD = "tensorboard"

MOST_ENTRIES = 10_000
"""Steps that a history holds at most; a longer run keeps every second one, every third, ..."""


@dataclass(frozen=True)
class StepEntry:
    """One optimizer step; steps count from 1."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    """Of this step alone, over all ranks, without validation and checkpoints."""


@dataclass(frozen=True)
class ValidationEntry:
    """The validation loss after a step (0: before training)."""

    step: int
    loss: float
    by_source: tuple[float, ...] = ()
    """Of each of several sources of text; nothing for the only one."""


@dataclass(frozen=True)
class ScoreEntry:
    """What the student scored in a task after a step (0: before training)."""

    step: int
    score: TaskScore


@dataclass
class History:
    """Losses over the whole run, attempts before this one included."""

    total_steps: int
    train: list[StepEntry] = field(default_factory=list)
    validation: list[ValidationEntry] = field(default_factory=list)
    scores: list[ScoreEntry] = field(default_factory=list)

    def add_step(self, entry: StepEntry) -> None:
        """Keep a step, if it is one of those that a history of this length keeps (the last one always is)."""
        stride = math.ceil(self.total_steps / MOST_ENTRIES)
        if entry.step % stride == 0 or entry.step == self.total_steps:
            self.train.append(entry)

    def add_validation(self, entry: ValidationEntry) -> None:
        """Keep a validation."""
        self.validation.append(entry)

    def add_scores(self, step: int, scores: Sequence[TaskScore]) -> None:
        """Keep what tasks gave after a step."""
        self.scores += [ScoreEntry(step, score) for score in scores]

    def scores_at(self, step: int | None = None) -> dict[str, float]:
        """Scores by task after a step, the last one that was scored if none is named."""
        if step is None and self.scores:
            step = self.scores[-1].step
        return {entry.score.name: entry.score.score for entry in self.scores if entry.step == step}

    def ranked(self, task: str | None = None, until: int | None = None) -> list[ValidationEntry]:
        """The validations after a step of training, up to step `until`, the best first: by their loss, or by the score
        in a task and then their loss. Of equals the earlier comes first.
        """
        found = [entry for entry in self.validation if entry.step > 0 and (until is None or entry.step <= until)]
        if task is None:
            return sorted(found, key=lambda entry: (entry.loss, entry.step))
        scores = {entry.step: entry.score for entry in self.scores if entry.score.name == task}

        def key(entry: ValidationEntry) -> tuple[float, float, int]:
            score = scores[entry.step]
            return (-score.score if score.higher_is_better else score.score, entry.loss, entry.step)

        return sorted((entry for entry in found if entry.step in scores), key=key)

    def best(self, task: str | None = None, until: int | None = None) -> ValidationEntry | None:
        """The first of `ranked`."""
        return next(iter(self.ranked(task, until)), None)

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the steps: the rate of training itself, whatever stood still meanwhile."""
        rates = sorted(entry.tokens_per_second for entry in self.train)
        return rates[len(rates) // 2] if rates else None

    def to_json(self) -> dict[str, Any]:
        """`{"totalSteps": ..., "train": [{"step": ..., "loss": ..., "learningRate": ...}], "validation": [...]}`, and
        `"scores": [{"step": ..., "name": ..., "score": ...}]` where tasks were scored.
        """
        scores = [{"step": entry.step, **entry.score.to_json()} for entry in self.scores]
        return {
            "totalSteps": self.total_steps,
            "train": [_camel(asdict(entry)) for entry in self.train],
            "validation": [_without_empty(_camel(asdict(entry))) for entry in self.validation],
            **({"scores": scores} if scores else {}),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "History":
        """The inverse of `to_json`; Python's JSON gives every float back to the last bit."""
        return cls(
            total_steps=content["totalSteps"],
            train=[StepEntry(**_known(StepEntry, entry)) for entry in content["train"]],
            validation=[
                ValidationEntry(**{**known, "by_source": tuple(known.get("by_source", ()))})
                for known in (_known(ValidationEntry, entry) for entry in content["validation"])
            ],
            scores=[ScoreEntry(entry["step"], TaskScore.model_validate(entry)) for entry in content.get("scores", [])],
        )


class Scalars:
    """TensorBoard event files of a run, written as it goes; a resumed run's are whole from its first step on."""

    def __init__(self, folder: Path, history: History, *, flops_per_token: float, peak: float | None) -> None:
        """Start anew in `<folder>/tensorboard` with what `history` already knows. `flops_per_token`: operations of one
        device for a token of the global batch; `peak`: operations that it can do in a second, where that is known.
        """
        from torch.utils.tensorboard.writer import SummaryWriter

        self._flops_per_token = flops_per_token
        self._peak = peak
        shutil.rmtree(folder / TENSORBOARD, ignore_errors=True)
        self._writer: SummaryWriter = SummaryWriter(str(folder / TENSORBOARD))
        for entry in history.train:
            self.add_step(entry)
        for entry in history.validation:
            self.add_validation(entry)
        for entry in history.scores:
            self.add_score(entry)

    def add_step(self, entry: StepEntry) -> None:
        """Write one step's figures."""
        self._add("train/loss", entry.loss, entry.step)
        self._add("train/learning_rate", entry.learning_rate, entry.step)
        self._add("train/gradient_norm", entry.gradient_norm, entry.step)
        self._add("train/tokens_per_second", entry.tokens_per_second, entry.step)
        operations = entry.tokens_per_second * self._flops_per_token
        self._add("train/teraflops_per_device", operations / 1e12, entry.step)
        if self._peak:
            self._add("train/model_flops_utilization", operations / self._peak, entry.step)

    def add_validation(self, entry: ValidationEntry) -> None:
        """Write a validation loss."""
        self._add("validation/loss", entry.loss, entry.step)

    def add_score(self, entry: ScoreEntry) -> None:
        """Write the score in a task."""
        self._add(f"tasks/{entry.score.name}", entry.score.score, entry.step)

    def close(self) -> None:
        """Flush what is still in memory and close the file."""
        self._writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step, walltime=time.time(), new_style=True)


def metrics_of(history: History, seen: Passes) -> dict[str, float | None]:
    """What an artifact's manifest says of a training: how fast it was, and how often it saw its text."""
    return {
        "tokensPerSecond": history.tokens_per_second,
        "tokens": seen.tokens,
        "uniqueTokens": seen.unique_tokens,
        "epochs": seen.epochs,
    }


def publish_curves(history: History, attempt: Path, artifact: Path) -> None:
    """Put `history.json` and the attempt's TensorBoard files into an artifact."""
    (artifact / "history.json").write_text(json.dumps(history.to_json(), indent=1) + "\n", encoding="utf-8")
    shutil.copytree(attempt / TENSORBOARD, artifact / TENSORBOARD)


def _camel(content: dict[str, Any]) -> dict[str, Any]:
    return {to_camel(name): value for name, value in content.items()}


def _without_empty(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if value != ()}


def _known(kind: type[Any], content: dict[str, Any]) -> dict[str, Any]:
    """The fields of `kind` in what was written, by this version or a later one."""
    names = {field.name for field in fields(kind)}
    return {to_snake(name): value for name, value in content.items() if to_snake(name) in names}
