"""Figures that jobs and the control plane compute, or say, alike."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .base import Record
from .jobs import StepResult

_UNITS = {
    "": 1,
    **{u: 1000**n for n, u in enumerate("kMGTPE", 1)},
    **{f"{u}i": 1024**n for n, u in enumerate("KMGTPE", 1)},
}


def won_back(teacher: float | None, pruned: float | None, distilled: float | None) -> float | None:
    """Share of the validation loss that pruning cost which distillation won back; 1 is all of it.

    `teacher`: the loss of the teacher that the student learnt from, the corrected one where there is one. None where a
    loss is missing, or where pruning cost nothing.
    """
    if teacher is None or pruned is None or distilled is None or not pruned > teacher:
        return None
    return (pruned - distilled) / (pruned - teacher)


def human_bytes(size: float) -> str:
    """Bytes in the decimal units of disks and of Hugging Face: 12.3 GB."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def quantity_bytes(quantity: str | int) -> int | None:
    """A quantity of Kubernetes (64Gi, 1e9) in bytes; None for what is none."""
    found = re.fullmatch(r"([0-9.]+)([eE][-+]?[0-9]+)?([kMGTPE]|[KMGTPE]i|)", str(quantity))
    try:
        return round(float(found[1] + (found[2] or "")) * _UNITS[found[3]]) if found else None
    except (ValueError, OverflowError):
        return None


def number_runs(numbers: Iterable[int]) -> str:
    """Numbers in their order with runs shortened: "1 to 15, 32"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


@dataclass(frozen=True)
class Figure:
    """One number or word that a phase reports."""

    name: str
    """As in JSON, e.g. bitsPerByte; of a map with the entry's own name behind it, e.g. accuracy.hellaswag."""
    value: float | str
    meaning: str
    """What the result's model says of it."""

    @property
    def label(self) -> str:
        """The name in words: "bits per byte"."""
        field, dot, entry = self.name.partition(".")
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", field).lower() + (f": {entry}" if dot else "")

    @property
    def text(self) -> str:
        """The value for people: thousands apart, five digits of a fraction."""
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        if isinstance(self.value, str):
            return self.value
        return f"{self.value:,}" if isinstance(self.value, int) else f"{self.value:,.5g}"


def figures_of(result: Record) -> list[Figure]:
    """The numbers and words of a phase's result, in the order of its fields; what every phase reports is none of them.

    So card, report and status show what a phase measured without knowing the phase.
    """
    found: list[Figure] = []
    for field, told in type(result).model_fields.items():
        if field in StepResult.model_fields:
            continue
        value, name = getattr(result, field), told.alias or field
        entries = {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
        found += [
            Figure(key, entry, told.description or "")
            for key, entry in entries.items()
            if isinstance(entry, int | float | str)
        ]
    return found
