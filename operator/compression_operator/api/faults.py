"""What is wrong with a manifest: one fault a line, and the exception that carries them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

Finding: TypeAlias = tuple[str, str]
"""Path of a field, and what is wrong with it."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `str` of it is the line to print: file, path of the field, what would be right."""

    file: str
    path: str  # e.g. spec.students[0].prune.hiddenSize, or "line 3, column 7", or empty for the whole file
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.path, self.message) if part)


class InvalidManifest(Exception):
    """A manifest that cannot be run. `faults` holds every fault found, in the order to print them."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))
