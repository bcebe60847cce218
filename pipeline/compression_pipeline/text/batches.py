"""Batches of tokens from Megatron's `.bin`/`.idx` files.

Training goes through the text epoch by epoch. In each the documents are shuffled and laid end to end, cut into
sequences, and the sequences shuffled; so none repeats before all were seen. The order of an epoch is drawn from the
seed and the epoch's number; batch number `step` is the slice `[step * global batch, (step + 1) * global batch)` of all
epochs. So the data of a step is a function of (seed, step) alone, however long the run, and a resumed run needs no
state of any iterator. Nothing of it is kept in files.

Validation sequences are a sample of the whole validation text, always the same.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy
import torch

from compression_pipeline.config import Passes, TrainingConfig, passes
from compression_pipeline.config.base import nearest_multiples
from compression_pipeline.errors import UserError
from compression_pipeline.random_order import permutation

from .indexed import IndexedText


class Place(Protocol):
    """A rank's share of the batches: `data_rank` of `data_size`, on `device`."""

    @property
    def data_rank(self) -> int: ...

    @property
    def data_size(self) -> int: ...

    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True)
class Batch:
    """Sequences for one forward pass; all tensors are [sequences, sequence length], int64, on the engine's device."""

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    """The token that follows each of `tokens`."""


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
        self._drawn_for = drawn_for
        self._epoch: _Epoch | None = None

    @cached_property
    def sequences_per_epoch(self) -> int:
        """Whole sequences, each with the token after it; what is left at the end of an epoch is left out of it."""
        return max(0, self.tokens - 1) // self.sequence_length

    def __getitem__(self, index: int) -> torch.Tensor:
        """Sequence `index` of all epochs and the token after it: [sequence length + 1], int64."""
        number, place = divmod(index, self.sequences_per_epoch)
        epoch = self._of(number)
        start = int(epoch.sequences[place]) * self.sequence_length
        return torch.from_numpy(self._read(epoch, start, self.sequence_length + 1).astype(numpy.int64))

    def _of(self, number: int) -> "_Epoch":
        if self._epoch is None or self._epoch.number != number:
            self._epoch = None  # its memory is needed for the next one
            documents = permutation(len(self._lengths), "documents", *self._drawn_for, number)
            sequences = permutation(self.sequences_per_epoch, "sequences", *self._drawn_for, number)
            self._epoch = _Epoch(
                number, documents, numpy.cumsum(self._lengths[documents], dtype=numpy.int64), sequences
            )
        return self._epoch

    def _read(self, epoch: "_Epoch", start: int, count: int) -> numpy.ndarray:
        """`count` tokens from `start` on of the epoch's documents laid end to end."""
        pieces: list[numpy.ndarray] = []
        place = int(numpy.searchsorted(epoch.ends, start, side="right"))
        while count > 0:
            document, left = int(epoch.documents[place]), int(epoch.ends[place]) - start
            end = int(self._places[document]) + int(self._lengths[document])
            pieces.append(self._tokens[end - left : end - left + min(left, count)])
            start, count, place = start + left, count - left, place + 1
        return numpy.concatenate(pieces)


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


class TrainingData:
    """The training sequences of one run, in its order."""

    def __init__(self, folder: Path, settings: TrainingConfig, place: Place, *, sequence_length: int) -> None:
        """Open `folder/train.bin`.

        Args:
            settings: steps, seed and batch sizes (see `sequences_per_pass`).
            sequence_length: tokens in one sequence.

        Raises:
            UserError: the text is shorter than one batch, or the batch does not divide among the ranks.
        """
        global_batch_size = settings.global_batch_size
        drawn_for = ("training", settings.seed)
        self._text = ShuffledText(folder / "train", sequence_length=sequence_length, drawn_for=drawn_for)
        available, needed = self._text.tokens, global_batch_size * sequence_length + 1
        if available < needed:
            raise UserError(
                f"dataset: {available:,} training tokens are less than one batch of {global_batch_size} sequences of "
                f"{sequence_length} ({needed:,}); lower globalBatchSize or sequenceLength, or give more text"
            )
        if global_batch_size % place.data_size:
            raise UserError(
                f"globalBatchSize: {global_batch_size} sequences do not divide among {place.data_size} ranks; "
                f"nearest: {nearest_multiples(global_batch_size, place.data_size)}"
            )
        self.sequence_length = sequence_length
        self._share = global_batch_size // place.data_size
        self.micro_batch_size = sequences_per_pass(settings, place)
        self.micro_batches = self._share // self.micro_batch_size
        self._global_batch_size = global_batch_size
        self._place = place
        self._positions = torch.arange(sequence_length, device=place.device)

    def passes(self, steps: int) -> Passes:
        """How often so many steps go through the text."""
        return passes(
            text_tokens=self._text.tokens,
            sequence_length=self.sequence_length,
            sequences=steps * self._global_batch_size,
        )

    def batches(self, step: int) -> list[Batch]:
        """This rank's share of the batch of `step` (counted from 0), as `micro_batches` batches."""
        first = step * self._global_batch_size + self._place.data_rank * self._share
        return [
            self._batch(range(start, start + self.micro_batch_size))
            for start in range(first, first + self._share, self.micro_batch_size)
        ]

    def _batch(self, indices: range) -> Batch:
        sequences = torch.stack([self._text[index] for index in indices]).to(self._place.device, non_blocking=True)
        return Batch(
            tokens=sequences[:, :-1].contiguous(),
            positions=self._positions.expand(len(sequences), -1),
            labels=sequences[:, 1:].contiguous(),
        )


class ValidationData:
    """A sample of the validation text's sequences: sequence n of the text is its tokens [n * length, (n + 1) * length].

    The sample is a function of the text's and the sequences' length alone, so the same in every phase, on every rank
    and in every attempt; a smaller one is the start of a larger one.
    """

    def __init__(self, folder: Path, *, sequence_length: int, samples: int) -> None:
        """Open `folder/validation.bin`.

        Args:
            samples: sequences to take; all, where the text has fewer.

        Raises:
            UserError: the text is shorter than one sequence.
        """
        text = IndexedText(folder / "validation")
        self.sequence_length = sequence_length
        available = len(text.tokens)
        if available <= sequence_length:
            raise UserError(
                f"dataset: {available:,} validation tokens are less than one sequence of {sequence_length}; lower "
                "sequenceLength, raise validationFraction, or give a longer validationSplit"
            )
        drawn = permutation((available - 1) // sequence_length, "validation", available, sequence_length)
        self._sequences: list[int] = drawn[:samples].tolist()
        self._tokens = text.tokens

    def __len__(self) -> int:
        return len(self._sequences)

    def batch(self, indices: range, device: torch.device) -> Batch:
        """The sequences `indices` of the sample as one batch."""
        length = self.sequence_length
        starts = [self._sequences[index] * length for index in indices]
        sequences = numpy.stack([self._tokens[start : start + length + 1] for start in starts])
        tokens = torch.from_numpy(sequences.astype(numpy.int64)).to(device)
        return Batch(
            tokens=tokens[:, :-1].contiguous(),
            positions=torch.arange(length, device=device).expand(len(indices), -1),
            labels=tokens[:, 1:].contiguous(),
        )


def sequences_per_pass(settings: TrainingConfig, place: Place) -> int:
    """Sequences in one forward pass of a rank, in training and in every validation of the step.

    Where a rank's share of the global batch is no multiple of the micro batch, it is the largest number below the micro
    batch that divides the share. A loss depends on it in its last bits, so all figures of a step are taken with it.
    """
    share = max(1, settings.global_batch_size // place.data_size)
    return largest_divisor(share, settings.micro_batch_size)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)
