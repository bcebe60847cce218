"""Which sequences a teacher and a text are good for: checked before any GPU is asked for, and by who trains; and how
often a training sees its text."""

from collections.abc import Mapping
from dataclasses import dataclass

from .architecture import Architecture
from .sources import DatasetConfig
from .training import TrainingConfig


def sequence_fault(teacher: Architecture, sequence_length: int) -> str | None:
    """What is wrong with sequences of so many tokens; None where the teacher was made for them."""
    most = _positions(teacher)
    if sequence_length <= most:
        return None
    stretched = most > teacher.max_position_embeddings
    known = "max_position_embeddings" + (" times the factor of rope_scaling" if stretched else "")
    return (
        f"dataset.sequenceLength: {sequence_length} is more than the teacher's {most} positions "
        f"({known}), which is all that it has learned; lower it to {most} or less"
    )


def text_fault(
    dataset: DatasetConfig, *, train_tokens: int, validation_tokens: int, trainings: Mapping[str, TrainingConfig]
) -> str | None:
    """What is wrong with so many tokens of text; None where there is a sequence of each split, and a batch to train on.

    `trainings`: by their fields of the manifest (finetune, distill).
    """
    length = dataset.sequence_length
    for split, tokens in (("train", train_tokens), ("validation", validation_tokens)):
        if tokens < length + 1:  # the last token of a sequence has a target, too
            return (
                f"dataset.source: {dataset.source} has {tokens} tokens of {split} text, fewer than one sequence of "
                f"dataset.sequenceLength ({length}); give more text, lower sequenceLength, or change how much is held "
                "out (dataset.validationFraction)"
            )
    for field, training in trainings.items():
        batch = training.global_batch_size
        needed, most = batch * length + 1, (train_tokens - 1) // length
        if train_tokens < needed:
            return (
                f"dataset.source: {dataset.source} has {train_tokens} tokens of train text, fewer than one batch "
                f"takes: {field}.globalBatchSize ({batch}) x dataset.sequenceLength ({length}) + 1 = {needed}; give "
                f"more text, or lower sequenceLength or {field}.globalBatchSize (to {most} at most)"
            )
    return None


PACKING = (
    "Documents are laid end to end, so those in one sequence see each other; the token that ends a document and the "
    "one after it are trained and measured like all others"
)
"""How text becomes sequences, for those who read its figures."""


@dataclass(frozen=True)
class Passes:
    """How often a training goes through its text. In an epoch no token comes twice."""

    epochs: float
    """Sequences that are trained for each that the text has."""
    tokens: int
    unique_tokens: int
    """Those of the first pass; the others were seen before."""

    @property
    def repeated(self) -> float:
        """Share of the trained tokens that were seen before."""
        return 1 - self.unique_tokens / self.tokens if self.tokens else 0.0

    def __str__(self) -> str:
        again = f", {100 * self.repeated:.0f} % of them seen before" if self.unique_tokens < self.tokens else ""
        return f"{self.tokens:,} tokens: {self.epochs:.3g} epochs, {self.unique_tokens:,} different ones{again}"


def passes(*, text_tokens: int, sequence_length: int, sequences: int) -> Passes:
    """How often a training on so many sequences goes through a text of so many tokens, at least one sequence."""
    per_epoch = max(1, (text_tokens - 1) // sequence_length)
    return Passes(
        epochs=sequences / per_epoch,
        tokens=sequences * sequence_length,
        unique_tokens=min(sequences, per_epoch) * sequence_length,
    )


def _positions(teacher: Architecture) -> int:
    """Positions that the teacher knows. Where they are stretched linearly, configs give their number now before and now
    after that: the larger one is no reason to refuse anybody.
    """
    rope = teacher.rope_scaling or {}
    factor = max(1.0, float(rope.get("factor", 1.0))) if rope.get("rope_type") == "linear" else 1.0
    return int(teacher.max_position_embeddings * factor)
