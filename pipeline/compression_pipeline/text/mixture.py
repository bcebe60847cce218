"""Several texts as one: which of them each sequence of a training, a validation or a calibration is of.

A folder of tokenized text has one text (`train.bin`, `validation.bin`), or several, each in a folder of its own, and
`mixture.json`, which lists them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

FILE = "mixture.json"
_BLOCK = 4096


@dataclass(frozen=True)
class Part:
    """One text of a folder."""

    folder: Path
    """Where its `train.bin` and `validation.bin` are."""
    weight: float
    source: str = ""
    """The field of the manifest that names it; empty for the only one. Not the place that the field names: another run
    finds the same texts in other places, and takes what was made of them.
    """


def parts(folder: Path) -> tuple[Part, ...]:
    """The texts of a folder, in the manifest's order. Raises OSError, ValueError, KeyError."""
    file = folder / FILE
    if not file.exists():
        return (Part(folder, 1.0),)
    listed: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return tuple(
        Part(folder / one["folder"], float(one["weight"]), f"dataset.sources[{number}]")
        for number, one in enumerate(listed)
    )


def write(folder: Path, texts: Sequence[Part]) -> None:
    """Write `mixture.json` for texts that lie below `folder`."""
    listed = [{"folder": text.folder.relative_to(folder).as_posix(), "weight": text.weight} for text in texts]
    (folder / FILE).write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


class Blend:
    """Which text each sequence is of: after any number of sequences each text's share is within one of its weight.

    Sequence n is of the text that is farthest behind its weight times max(n, 1), the first of equals: the order of
    Megatron's `build_blending_indices`, told sequence by sequence, so that a training needs no end and no index of it.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """`weights`: positive; they are divided by their sum."""
        total = sum(weights)
        self._weights = [weight / total for weight in weights]
        self._before: list[tuple[int, ...]] = [(0,) * len(weights)]  # sequences of each text before a block
        self._block: tuple[int, list[tuple[int, int]]] = (-1, [])

    def __getitem__(self, index: int) -> tuple[int, int]:
        """The text of sequence `index` of the blend, and which sequence of that text it is, both from 0."""
        if len(self._weights) == 1:
            return 0, index
        number, place = divmod(index, _BLOCK)
        if number != self._block[0]:
            while len(self._before) <= number:  # a training that goes on comes here once
                self._fill(len(self._before) - 1)
            self._fill(number)
        return self._block[1][place]

    def _fill(self, number: int) -> None:
        """Compute a block whose beginning is known, and with it that of the next."""
        taken, found = list(self._before[number]), list[tuple[int, int]]()
        for index in range(number * _BLOCK, (number + 1) * _BLOCK):
            place = max(index, 1)
            behind = [weight * place - done for weight, done in zip(self._weights, taken, strict=True)]
            text = behind.index(max(behind))
            found.append((text, taken[text]))
            taken[text] += 1
        self._block = number, found
        if len(self._before) == number + 1:
            self._before.append(tuple(taken))


def sample(weights: Sequence[float], available: Sequence[int], size: int) -> list[tuple[int, int]]:
    """The first `size` sequences of a blend in which none comes twice: a text that is used up leaves the others to go
    on by their weights. All sequences, where there are fewer. A smaller sample is the start of a larger one.

    `available`: sequences of each text.
    """
    taken, found = [0] * len(weights), list[tuple[int, int]]()
    left = [text for text, sequences in enumerate(available) if sequences]
    while left and len(found) < size:
        blend = Blend([weights[text] for text in left])
        for index in count():
            text = left[blend[index][0]]
            found.append((text, taken[text]))
            taken[text] += 1
            if len(found) == size:
                break
            if taken[text] == available[text]:
                left.remove(text)
                break
    return found
