"""Batches of tokens from Megatron's `.bin`/`.idx` files.

Training sequences come from Megatron's GPTDataset: documents are shuffled per epoch and laid end to end, cut into
sequences, and the sequences shuffled. That order is drawn from the seed and the number of sequences in the whole run;
batch number `step` is its slice `[step * global batch, (step + 1) * global batch)`. So the data of a step is a function
of (seed, step) alone, and a resumed run needs no state of any iterator.

Validation sequences are the first ones of the validation text, in its own order, always the same.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy
import torch
import torch.distributed as dist

from compression_pipeline.config import TrainingConfig
from compression_pipeline.config.base import nearest_multiples
from compression_pipeline.errors import UserError

from .runtime import Runtime

if TYPE_CHECKING:
    from megatron.core.datasets.gpt_dataset import GPTDataset
    from megatron.core.datasets.indexed_dataset import IndexedDataset


@dataclass(frozen=True)
class Batch:
    """Sequences for one forward pass; all tensors are [sequences, sequence length], int64, on the runtime's device."""

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    """The token that follows each of `tokens`."""


class TrainingData:
    """The training sequences of one run, in its order."""

    def __init__(
        self,
        folder: Path,
        settings: TrainingConfig,
        runtime: Runtime,
        *,
        sequence_length: int,
        cache: Path,
    ) -> None:
        """Open `folder/train.bin` and draw the order of all steps' batches.

        Args:
            settings: steps, seed and batch sizes. Where a rank's share of the global batch is no multiple of the micro
                batch, the largest number below the micro batch that divides the share is taken.
            sequence_length: tokens in one sequence.
            cache: private folder, the same for all ranks, in which rank 0 leaves the drawn order for the others.

        Raises:
            UserError: the text is shorter than one batch, or the batch does not divide among the ranks.
        """
        text = _open(folder / "train")
        global_batch_size = settings.global_batch_size
        available, needed = text_length(text), global_batch_size * sequence_length + 1
        if available < needed:
            raise UserError(
                f"dataset: {available:,} training tokens are less than one batch of {global_batch_size} sequences of "
                f"{sequence_length} ({needed:,}); lower globalBatchSize or sequenceLength, or give more text"
            )
        if global_batch_size % runtime.world_size:
            raise UserError(
                f"globalBatchSize: {global_batch_size} sequences do not divide among {runtime.world_size} ranks; "
                f"nearest: {nearest_multiples(global_batch_size, runtime.world_size)}"
            )
        self.sequence_length = sequence_length
        self._share = global_batch_size // runtime.world_size
        self.micro_batch_size = largest_divisor(self._share, settings.micro_batch_size)
        self.micro_batches = self._share // self.micro_batch_size
        self._global_batch_size = global_batch_size
        self._runtime = runtime
        self._positions = torch.arange(sequence_length, device=runtime.device)
        samples = settings.steps * global_batch_size
        self._sequences = _gpt_dataset(text, folder / "train", runtime, sequence_length, samples, settings.seed, cache)

    def batches(self, step: int) -> list[Batch]:
        """This rank's share of the batch of `step` (counted from 0), as `micro_batches` batches."""
        first = step * self._global_batch_size + self._runtime.rank * self._share
        return [
            self._batch(range(start, start + self.micro_batch_size))
            for start in range(first, first + self._share, self.micro_batch_size)
        ]

    def sequence(self, index: int) -> torch.Tensor:
        """Sequence `index` of the run's order and the token after it: [sequence length + 1], int64, on the CPU."""
        sample = cast("dict[str, torch.Tensor]", self._sequences[index])
        return torch.cat((sample["tokens"], sample["labels"][-1:]))

    def _batch(self, indices: range) -> Batch:
        samples = [cast("dict[str, torch.Tensor]", self._sequences[index]) for index in indices]
        device = self._runtime.device
        return Batch(
            tokens=torch.stack([sample["tokens"] for sample in samples]).to(device, non_blocking=True),
            positions=self._positions.expand(len(samples), -1),
            labels=torch.stack([sample["labels"] for sample in samples]).to(device, non_blocking=True),
        )


class ValidationData:
    """The first sequences of the validation text: sequence i is tokens [i * length, (i + 1) * length] of it."""

    def __init__(self, folder: Path, *, sequence_length: int, samples: int) -> None:
        """Open `folder/validation.bin`.

        Args:
            samples: sequences to take; all, where the text has fewer.

        Raises:
            UserError: the text is shorter than one sequence.
        """
        text = _open(folder / "validation")
        self.sequence_length = sequence_length
        available = text_length(text)
        self.samples = min(samples, (available - 1) // sequence_length)
        if self.samples < 1:
            raise UserError(
                f"dataset: {available:,} validation tokens are less than one sequence of {sequence_length}; lower "
                "sequenceLength, raise validationFraction, or give a longer validationSplit"
            )
        # The file is the documents end to end, without anything between.
        self._tokens = numpy.memmap(f"{folder / 'validation'}.bin", dtype=text.index.dtype, mode="r")

    def __len__(self) -> int:
        return self.samples

    def batch(self, indices: range, device: torch.device) -> Batch:
        """The sequences of `indices` as one batch."""
        length = self.sequence_length
        sequences = numpy.stack([self._tokens[i * length : (i + 1) * length + 1] for i in indices])
        tokens = torch.from_numpy(sequences.astype(numpy.int64)).to(device)
        return Batch(
            tokens=tokens[:, :-1].contiguous(),
            positions=torch.arange(length, device=device).expand(len(indices), -1),
            labels=tokens[:, 1:].contiguous(),
        )


def text_length(text: "IndexedDataset") -> int:
    """Tokens in all documents."""
    return int(numpy.sum(text.sequence_lengths, dtype=numpy.int64))


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def _open(prefix: Path) -> "IndexedDataset":
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    return IndexedDataset(str(prefix))


class _NoTokenizer:
    """What GPTDataset asks of a tokenizer, when no mask depends on it: no token is padding."""

    eod = -1
    pad = -1
    unique_identifiers: ClassVar[OrderedDict[str, Any]] = OrderedDict()


def _gpt_dataset(
    text: "IndexedDataset",
    prefix: Path,
    runtime: Runtime,
    sequence_length: int,
    samples: int,
    seed: int,
    cache: Path,
) -> "GPTDataset":
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=sequence_length,
        blend=([str(prefix)], None),
        split="1",
        tokenizer=cast("Any", _NoTokenizer()),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(cache),
    )

    def build() -> "GPTDataset":
        documents = numpy.arange(text.sequence_lengths.shape[0], dtype=numpy.int32)
        return GPTDataset(text, str(prefix), documents, samples, Split.train, config)

    # Rank 0 draws the order and leaves it in the cache; the others read it there.
    if runtime.rank == 0:
        dataset = build()
        dist.barrier()
    else:
        dist.barrier()
        dataset = build()
    return dataset
