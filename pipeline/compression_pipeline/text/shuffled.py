"""Training text as sequences in random order, without end.

In each epoch the documents are shuffled and laid end to end, cut into sequences, and the sequences shuffled; so none
repeats before all were seen. The order of an epoch is drawn from what the caller names and the epoch's number. Several
texts are each gone through so, and blended by weight (`mixture.Blend`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy
import torch

from compression_pipeline.errors import UserError
from compression_pipeline.random_order import permutation

from . import mixture
from .indexed import IndexedText


@dataclass(frozen=True)
class _Epoch:
    """One pass over a text."""

    number: int
    documents: numpy.ndarray
    """Numbers of the documents, in the order in which they are laid end to end."""
    ends: numpy.ndarray
    """Tokens up to the end of each of them."""
    sequences: numpy.ndarray
    """Numbers of the sequences that they are cut into, in the order in which they are seen."""


class ShuffledText:
    """A text as sequences in random order, without end: epoch after epoch, each with every sequence once."""

    def __init__(self, prefix: Path, *, sequence_length: int, drawn_for: tuple[str | int, ...]) -> None:
        """Open `<prefix>.bin`. `drawn_for`: what the order is drawn from."""
        text = IndexedText(prefix)
        self.tokens = len(text.tokens)
        self.sequence_length = sequence_length
        self._lengths = text.lengths
        self._places = text.places
        self._tokens = text.tokens
        self._mask = text.mask
        self._drawn_for = drawn_for
        self._epoch: _Epoch | None = None

    @cached_property
    def sequences_per_epoch(self) -> int:
        """Whole sequences, each with the token after it; what is left at the end of an epoch is left out of it."""
        return max(0, self.tokens - 1) // self.sequence_length

    def __getitem__(self, index: int) -> torch.Tensor:
        """Sequence `index` of all epochs and the token after it: [sequence length + 1], int64."""
        epoch, start = self._place(index)
        found = self._read(self._tokens, epoch, start, self.sequence_length + 1)
        return torch.from_numpy(found.astype(numpy.int64))

    @property
    def masked(self) -> bool:
        """Whether not all tokens are learned."""
        return self._mask is not None

    def learned(self, index: int) -> torch.Tensor:
        """Of each token that follows one of sequence `index`, 1 if it is learned: [sequence length], uint8."""
        if self._mask is None:
            return torch.ones(self.sequence_length, dtype=torch.uint8)
        epoch, start = self._place(index)
        return torch.from_numpy(self._read(self._mask, epoch, start + 1, self.sequence_length))

    def positions(self, index: int) -> torch.Tensor:
        """The place of each token of sequence `index` in what the sequence has of its document: [sequence length]."""
        epoch, start = self._place(index)
        return torch.cat([torch.arange(size) for _, size in self._pieces(epoch, start, self.sequence_length)])

    def _place(self, index: int) -> tuple[_Epoch, int]:
        """The epoch of sequence `index`, and where among its tokens the sequence begins."""
        number, place = divmod(index, self.sequences_per_epoch)
        epoch = self._of(number)
        return epoch, int(epoch.sequences[place]) * self.sequence_length

    def _of(self, number: int) -> _Epoch:
        if self._epoch is None or self._epoch.number != number:
            self._epoch = None  # its memory is needed for the next one
            documents = permutation(len(self._lengths), "documents", *self._drawn_for, number)
            sequences = permutation(self.sequences_per_epoch, "sequences", *self._drawn_for, number)
            self._epoch = _Epoch(
                number, documents, numpy.cumsum(self._lengths[documents], dtype=numpy.int64), sequences
            )
        return self._epoch

    def _read(self, values: numpy.ndarray, epoch: _Epoch, start: int, count: int) -> numpy.ndarray:
        """What there is of `count` tokens from `start` on of the epoch's documents laid end to end."""
        return numpy.concatenate([values[at : at + size] for at, size in self._pieces(epoch, start, count)])

    def _pieces(self, epoch: _Epoch, start: int, count: int) -> Iterator[tuple[int, int]]:
        """Where in the file the part of each document begins that they are of, and its tokens."""
        place = int(numpy.searchsorted(epoch.ends, start, side="right"))
        while count > 0:
            document, left = int(epoch.documents[place]), int(epoch.ends[place]) - start
            end = int(self._places[document]) + int(self._lengths[document])
            yield end - left, min(left, count)
            start, count, place = start + left, count - left, place + 1


class MixedText:
    """The training texts of a folder as sequences without end, blended by weight; the only text, where there is one."""

    def __init__(self, folder: Path, *, sequence_length: int, drawn_for: tuple[str | int, ...]) -> None:
        """Open each `train.bin`. Raises UserError where one is shorter than a sequence."""
        self.parts = mixture.parts(folder)
        self.texts = [
            ShuffledText(
                part.folder / "train",
                sequence_length=sequence_length,
                drawn_for=(*drawn_for, "source", number) if number else drawn_for,
            )
            for number, part in enumerate(self.parts)
        ]
        for part, text in zip(self.parts, self.texts, strict=True):
            if text.sequences_per_epoch < 1:
                raise UserError(too_short(part.source, text.tokens, "training", sequence_length))
        self._blend = mixture.Blend([part.weight for part in self.parts])

    @property
    def tokens(self) -> int:
        return sum(text.tokens for text in self.texts)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Sequence `index` of the blend and the token after it: [sequence length + 1], int64."""
        text, number = self._blend[index]
        return self.texts[text][number]

    @property
    def masked(self) -> bool:
        """Whether not all tokens are learned."""
        return any(text.masked for text in self.texts)

    def learned(self, index: int) -> torch.Tensor:
        """See `ShuffledText.learned`."""
        text, number = self._blend[index]
        return self.texts[text].learned(number)

    def positions(self, index: int) -> torch.Tensor:
        """See `ShuffledText.positions`."""
        text, number = self._blend[index]
        return self.texts[text].positions(number)

    def sample(self, size: int) -> list[tuple[int, int]]:
        """See `mixture.sample`."""
        available = [text.sequences_per_epoch for text in self.texts]
        return mixture.sample([part.weight for part in self.parts], available, size)


def too_short(source: str, tokens: int, use: str, sequence_length: int) -> str:
    """What there is to say of a text without a sequence. `use`: training or validation."""
    whose = f" of {source}" if source else ""
    held_out = "raise validationFraction, " if use == "validation" else ""
    split = "a longer validationSplit" if use == "validation" else "more text"
    return (
        f"dataset: {tokens:,} {use} tokens{whose} are less than one sequence of {sequence_length}; lower "
        f"sequenceLength, {held_out}or give {split}"
    )
