"""Batches of tokens from Megatron's `.bin`/`.idx` files.

Training goes through the text as `shuffled.MixedText` has it: batch number `step` is the slice `[step * global batch,
(step + 1) * global batch)` of all epochs. So the data of a step is a function of (seed, step) alone, however long the
run, and a resumed run needs no state of any iterator. Nothing of it is kept in files.

Validation sequences are a sample of the whole validation text, always the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy
import torch

from compression_pipeline.config import DocumentAttention, Passes, Share, TrainingConfig, repetitions
from compression_pipeline.config.base import nearest_multiples
from compression_pipeline.errors import UserError
from compression_pipeline.random_order import permutation
from compression_pipeline.teacher_logits import CachedLogits, Likeliest

from . import mixture
from .indexed import IndexedText
from .isolation import mask_of, positions_in
from .shuffled import MixedText, too_short

MOST_LOOKED_AT = 100_000
"""Steps whose batches are looked at before a training begins, which takes some seconds."""


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
    """Sequences for one forward pass; all tensors are [sequences, sequence length], on the engine's device; int64, but
    for the weights.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    """The token that follows each of `tokens`."""
    isolated: bool = False
    """Whether documents, which begin at position 0, do not see each other."""
    weights: torch.Tensor | None = None
    """What the loss of each label counts, float32: 0 where it is not learned (`dataset.promptColumn`). None: all are.

    In validation the others count 1. In training they count the global batch's tokens over its learned tokens. So the
    mean of weight times loss over all tokens of the batch, whichever pass and rank has them, is the mean over those
    that are learned, and no pass need know how many the others have.
    """

    teacher: Likeliest | None = None
    """What is known of the teacher's logits, where they are read (`CachedLogits`): [sequences, tokens, ...]."""

    @property
    def mask(self) -> torch.Tensor | None:
        """What must not be seen (`isolation.mask_of`), for Megatron's models; None: nothing but what comes later.

        It is made where it is asked for: those of all passes of a step would be larger than the models.
        """
        return mask_of(self.positions) if self.isolated else None


def _nothing_learned(source: str, samples: int, sequence_length: int) -> str:
    whose = f" of {source}" if source else ""
    return (
        f"validation.samples: the {samples:,} validation sequences{whose} hold prompts alone (dataset.promptColumn), "
        "so there is no token to measure a loss over; raise validation.samples, or dataset.sequenceLength "
        f"({sequence_length}) above the longest prompt"
    )


class TrainingSequences:
    """The training sequences of a text in the order that a seed draws: number n, whatever the batches are."""

    def __init__(
        self, folder: Path, seed: int, device: torch.device, *, sequence_length: int, attention: DocumentAttention
    ) -> None:
        """Open `folder/train.bin`. Raises UserError where the text is shorter than a sequence."""
        self.text = MixedText(folder, sequence_length=sequence_length, drawn_for=("training", seed))
        self._device = device
        self._isolated = attention is DocumentAttention.ISOLATED
        self._positions = torch.arange(sequence_length, device=device)

    def batch(self, indices: range) -> Batch:
        """These sequences, without weights."""
        sequences = torch.stack([self.text[index] for index in indices]).to(self._device, non_blocking=True)
        batch = Batch(
            tokens=sequences[:, :-1].contiguous(),
            positions=self._positions.expand(len(sequences), -1),
            labels=sequences[:, 1:].contiguous(),
        )
        return isolated(batch, [self.text.positions(index) for index in indices]) if self._isolated else batch


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
        teacher: CachedLogits | None = None,
    ) -> None:
        """Open `folder/train.bin`.

        Args:
            settings: steps, seed and batch sizes (see `sequences_per_pass`).
            sequence_length: tokens in one sequence.
            attention: whether documents in a sequence see each other.
            teacher: its logits of these sequences, for batches to bring along.

        Raises:
            UserError: the text is shorter than one batch, or the batch does not divide among the ranks.
        """
        global_batch_size = settings.global_batch_size
        self._sequences = TrainingSequences(
            folder, settings.seed, place.device, sequence_length=sequence_length, attention=attention
        )
        self._text = self._sequences.text
        self._teacher = teacher
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
        self.isolated = attention is DocumentAttention.ISOLATED

    def passes(self, steps: int) -> Passes:
        """How often so many steps go through the text."""
        return Passes.over(self._shares, sequence_length=self.sequence_length, sequences=self._seen(steps))

    def remarks(self, steps: int) -> list[str]:
        """What there is to say of so many steps: of sources that they go through too often (`repetitions`), and of
        steps that learn nothing. Raises UserError where none learns anything.
        """
        sequences = self._seen(steps)
        said = repetitions(self._shares, sequence_length=self.sequence_length, sequences=sequences)
        return [*said, *self._silent(steps)]

    def _silent(self, steps: int) -> list[str]:
        """Of global batches that are prompts alone: their loss is 0, and no weight learns of them."""
        looked, size = min(steps, MOST_LOOKED_AT), self._global_batch_size
        if not self._text.masked:
            return []
        batches = (range(step * size, (step + 1) * size) for step in range(looked))
        silent = sum(not any(self._text.learned(index).any() for index in batch) for batch in batches)
        of = f"{looked:,} steps" if looked == steps else f"the first {looked:,} steps"
        said = (
            f"{silent:,} of {of} learn nothing, because their global batch holds prompts alone (dataset.promptColumn): "
            "raise globalBatchSize, raise dataset.sequenceLength above the longest prompt, or shorten the prompts"
        )
        if silent == steps:
            raise UserError(said)
        return [said] if silent else []

    def _seen(self, steps: int) -> int:
        return steps * self._global_batch_size

    @property
    def _shares(self) -> list[Share]:
        pairs = zip(self._text.parts, self._text.texts, strict=True)
        return [Share(part.source, part.weight, text.tokens) for part, text in pairs]

    def batches(self, step: int) -> list[Batch]:
        """This rank's share of the batch of `step` (counted from 0), as `micro_batches` batches."""
        begin = step * self._global_batch_size
        first = begin + self._place.data_rank * self._share
        weights = self._weights(range(begin, begin + self._global_batch_size)) if self._text.masked else None
        return [
            self._batch(
                range(start, start + self.micro_batch_size),
                None if weights is None else weights[start - begin : start - begin + self.micro_batch_size],
            )
            for start in range(first, first + self._share, self.micro_batch_size)
        ]

    def _weights(self, indices: range) -> torch.Tensor:
        """`Batch.weights` of a global batch; 0 where nothing of it is learned."""
        learned = torch.stack([self._text.learned(index) for index in indices])
        return learned * (learned.numel() / max(1, int(learned.sum())))

    def _batch(self, indices: range, weights: torch.Tensor | None) -> Batch:
        device = self._place.device
        return replace(
            self._sequences.batch(indices),
            weights=None if weights is None else weights.to(device, non_blocking=True),
            teacher=None if self._teacher is None else self._teacher[indices].to(device),
        )


def isolated(batch: Batch, positions: Sequence[torch.Tensor]) -> Batch:
    """The batch with documents that do not see each other. `positions`: of each sequence (`ShuffledText.positions`)."""
    stacked = torch.stack([*positions]).to(batch.tokens.device, non_blocking=True)
    return replace(batch, positions=stacked, isolated=True)


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
            UserError: a text is shorter than one sequence, or no token of its sample is learned.
        """
        self.sequence_length = sequence_length
        parts = mixture.parts(folder)
        self.sources = tuple(part.source for part in parts)
        """The sources of the texts; one empty name, where there is one text."""
        self._weights = [part.weight for part in parts]
        texts = [IndexedText(part.folder / "validation") for part in parts]
        self._tokens = [text.tokens for text in texts]
        self._masks = [text.mask for text in texts]
        self._starts = [text.places for text in texts] if attention is DocumentAttention.ISOLATED else None
        drawn: list[list[int]] = []
        for source, tokens in zip(self.sources, self._tokens, strict=True):
            available = len(tokens)
            if available <= sequence_length:
                raise UserError(too_short(source, available, "validation", sequence_length))
            drawn.append(
                permutation((available - 1) // sequence_length, "validation", available, sequence_length).tolist()
            )
        first = [(text, 0) for text in range(len(parts))]
        more = mixture.sample(self._weights, [len(sequences) for sequences in drawn], samples)
        chosen = [*first, *(one for one in more if one not in first)][: max(samples, len(first))]
        self._sequences = [(text, drawn[text][number]) for text, number in chosen]
        for text, source in enumerate(self.sources):
            mine = [number * sequence_length for found, number in self._sequences if found == text]
            if not any(self._learned(text, start).any() for start in mine):
                raise UserError(_nothing_learned(source, len(mine), sequence_length))

    def _learned(self, text: int, start: int) -> numpy.ndarray:
        """Of each token that follows one of the sequence there, 1 if it is learned."""
        mask, length = self._masks[text], self.sequence_length
        return numpy.ones(length, numpy.uint8) if mask is None else mask[start + 1 : start + length + 1]

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
            weights=self._counted(places, device),
        )
        if self._starts is None:
            return batch
        of_each = [positions_in(self._starts[text], start, length) for text, start in places]
        return isolated(batch, of_each)

    def _counted(self, places: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor | None:
        if all(mask is None for mask in self._masks):
            return None
        learned = numpy.stack([self._learned(text, start) for text, start in places])
        return torch.from_numpy(learned).to(device, torch.float32)

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
