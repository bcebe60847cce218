"""Batches of tokens from Megatron's `.bin`/`.idx` files.

Training goes through the text epoch by epoch. In each the documents are shuffled and laid end to end, cut into
sequences, and the sequences shuffled; so none repeats before all were seen. The order of an epoch is drawn from the
seed and the epoch's number; batch number `step` is the slice `[step * global batch, (step + 1) * global batch)` of all
epochs. So the data of a step is a function of (seed, step) alone, however long the run, and a resumed run needs no
state of any iterator. Nothing of it is kept in files. Several texts are each gone through so, and blended by weight
(`mixture.Blend`).

Validation sequences are a sample of the whole validation text, always the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy
import torch

from compression_pipeline.config import DocumentAttention, Passes, Share, TrainingConfig, repetitions
from compression_pipeline.config.base import nearest_multiples
from compression_pipeline.errors import UserError
from compression_pipeline.random_order import permutation

from . import mixture
from .indexed import IndexedText
from .isolation import mask_of, positions_in


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
    mask: torch.Tensor | None = None
    """What must not be seen (`isolation.mask_of`), for Megatron's models; None: nothing but what comes later."""


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

    def positions(self, index: int) -> torch.Tensor:
        """The place of each token of sequence `index` in what the sequence has of its document: [sequence length]."""
        number, place = divmod(index, self.sequences_per_epoch)
        epoch = self._of(number)
        start = int(epoch.sequences[place]) * self.sequence_length
        return torch.cat([torch.arange(size) for _, size in self._pieces(epoch, start, self.sequence_length)])

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
        return numpy.concatenate([self._tokens[at : at + size] for at, size in self._pieces(epoch, start, count)])

    def _pieces(self, epoch: "_Epoch", start: int, count: int) -> Iterator[tuple[int, int]]:
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
                raise UserError(_too_short(part.source, text.tokens, "training", sequence_length))
        self._blend = mixture.Blend([part.weight for part in self.parts])

    @property
    def tokens(self) -> int:
        return sum(text.tokens for text in self.texts)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Sequence `index` of the blend and the token after it: [sequence length + 1], int64."""
        text, number = self._blend[index]
        return self.texts[text][number]

    def positions(self, index: int) -> torch.Tensor:
        """See `ShuffledText.positions`."""
        text, number = self._blend[index]
        return self.texts[text].positions(number)

    def sample(self, size: int) -> list[tuple[int, int]]:
        """See `mixture.sample`."""
        available = [text.sequences_per_epoch for text in self.texts]
        return mixture.sample([part.weight for part in self.parts], available, size)


def _too_short(source: str, tokens: int, use: str, sequence_length: int) -> str:
    whose = f" of {source}" if source else ""
    held_out = "raise validationFraction, " if use == "validation" else ""
    split = "a longer validationSplit" if use == "validation" else "more text"
    return (
        f"dataset: {tokens:,} {use} tokens{whose} are less than one sequence of {sequence_length}; lower "
        f"sequenceLength, {held_out}or give {split}"
    )


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

    def __init__(
        self,
        folder: Path,
        settings: TrainingConfig,
        place: Place,
        *,
        sequence_length: int,
        attention: DocumentAttention = DocumentAttention.SHARED,
    ) -> None:
        """Open `folder/train.bin`.

        Args:
            settings: steps, seed and batch sizes (see `sequences_per_pass`).
            sequence_length: tokens in one sequence.
            attention: whether documents in a sequence see each other.

        Raises:
            UserError: the text is shorter than one batch, or the batch does not divide among the ranks.
        """
        global_batch_size = settings.global_batch_size
        drawn_for = ("training", settings.seed)
        self._text = MixedText(folder, sequence_length=sequence_length, drawn_for=drawn_for)
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
        self._isolated = attention is DocumentAttention.ISOLATED
        self._positions = torch.arange(sequence_length, device=place.device)

    def passes(self, steps: int) -> Passes:
        """How often so many steps go through the text."""
        return Passes.over(self._shares, sequence_length=self.sequence_length, sequences=self._sequences(steps))

    def repetitions(self, steps: int) -> list[str]:
        """What there is to say of sources that so many steps go through too often (`repetitions`)."""
        return repetitions(self._shares, sequence_length=self.sequence_length, sequences=self._sequences(steps))

    def _sequences(self, steps: int) -> int:
        return steps * self._global_batch_size

    @property
    def _shares(self) -> list[Share]:
        pairs = zip(self._text.parts, self._text.texts, strict=True)
        return [Share(part.source, part.weight, text.tokens) for part, text in pairs]

    def batches(self, step: int) -> list[Batch]:
        """This rank's share of the batch of `step` (counted from 0), as `micro_batches` batches."""
        first = step * self._global_batch_size + self._place.data_rank * self._share
        return [
            self._batch(range(start, start + self.micro_batch_size))
            for start in range(first, first + self._share, self.micro_batch_size)
        ]

    def _batch(self, indices: range) -> Batch:
        sequences = torch.stack([self._text[index] for index in indices]).to(self._place.device, non_blocking=True)
        batch = Batch(
            tokens=sequences[:, :-1].contiguous(),
            positions=self._positions.expand(len(sequences), -1),
            labels=sequences[:, 1:].contiguous(),
        )
        return isolated(batch, [self._text.positions(index) for index in indices]) if self._isolated else batch


def isolated(batch: Batch, positions: Sequence[torch.Tensor]) -> Batch:
    """The batch with documents that do not see each other. `positions`: of each sequence (`ShuffledText.positions`)."""
    stacked = torch.stack([*positions])
    mask, device = mask_of(stacked), batch.tokens.device
    return replace(batch, positions=stacked.to(device), mask=None if mask is None else mask.to(device))


@dataclass(frozen=True)
class ValidationLoss:
    """A validation loss, in nats per token."""

    loss: float
    """The mean by weight, where the text has several sources."""
    by_source: tuple[float, ...] = ()
    """Of each of several sources; nothing for the only one."""


class ValidationData:
    """A sample of the validation text's sequences: sequence n of the text is its tokens [n * length, (n + 1) * length].

    Of several texts each gives sequences by its weight, and one at least. The sample is a function of the texts, their
    weights and the sequences' length alone, so the same in every phase, on every rank and in every attempt; a smaller
    one is the start of a larger one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sequence_length: int,
        samples: int,
        attention: DocumentAttention = DocumentAttention.SHARED,
    ) -> None:
        """Open each `validation.bin`.

        Args:
            samples: sequences to take; all, where the text has fewer.
            attention: whether documents in a sequence see each other.

        Raises:
            UserError: a text is shorter than one sequence.
        """
        self.sequence_length = sequence_length
        parts = mixture.parts(folder)
        self.sources = tuple(part.source for part in parts)
        """The sources of the texts; one empty name, where there is one text."""
        self._weights = [part.weight for part in parts]
        texts = [IndexedText(part.folder / "validation") for part in parts]
        self._tokens = [text.tokens for text in texts]
        self._starts = [text.places for text in texts] if attention is DocumentAttention.ISOLATED else None
        drawn: list[list[int]] = []
        for source, tokens in zip(self.sources, self._tokens, strict=True):
            available = len(tokens)
            if available <= sequence_length:
                raise UserError(_too_short(source, available, "validation", sequence_length))
            drawn.append(
                permutation((available - 1) // sequence_length, "validation", available, sequence_length).tolist()
            )
        first = [(text, 0) for text in range(len(parts))]
        more = mixture.sample(self._weights, [len(sequences) for sequences in drawn], samples)
        chosen = [*first, *(one for one in more if one not in first)][: max(samples, len(first))]
        self._sequences = [(text, drawn[text][number]) for text, number in chosen]

    def __len__(self) -> int:
        return len(self._sequences)

    def batch(self, indices: range, device: torch.device) -> Batch:
        """The sequences `indices` of the sample as one batch."""
        length = self.sequence_length
        places = [(text, number * length) for text, number in (self._sequences[index] for index in indices)]
        sequences = numpy.stack([self._tokens[text][start : start + length + 1] for text, start in places])
        tokens = torch.from_numpy(sequences.astype(numpy.int64)).to(device)
        batch = Batch(
            tokens=tokens[:, :-1].contiguous(),
            positions=torch.arange(length, device=device).expand(len(indices), -1),
            labels=tokens[:, 1:].contiguous(),
        )
        if self._starts is None:
            return batch
        of_each = [positions_in(self._starts[text], start, length) for text, start in places]
        return isolated(batch, of_each)

    def texts_of(self, indices: range) -> list[int]:
        """Which of `sources` each of the sequences is of."""
        return [self._sequences[index][0] for index in indices]

    def loss(self, means: Sequence[float]) -> ValidationLoss:
        """The validation loss, given the mean loss per token of each source: their mean by weight."""
        total = sum(weight * mean for weight, mean in zip(self._weights, means, strict=True))
        several = len(means) > 1
        return ValidationLoss(total / sum(self._weights) if several else means[0], tuple(means) if several else ())


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
