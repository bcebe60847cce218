"""Which sequences a teacher and a text are good for: checked before any GPU is asked for, and by who trains; and how
often a training sees its text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .architecture import Architecture
from .jobs import ResolvedText
from .sources import DatasetConfig, DocumentAttention
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
    dataset: DatasetConfig,
    *,
    train_tokens: int,
    validation_tokens: int,
    trainings: Mapping[str, TrainingConfig],
    sources: Sequence[ResolvedText] = (),
) -> str | None:
    """What is wrong with so many tokens of text; None where there is a sequence of each split, and a batch to train on.

    `trainings`: by their fields of the manifest (finetune, distill). `sources`: each of several; all of them have a
    sequence of each split.
    """
    length = dataset.sequence_length
    more = "give more text" if dataset.tokens is None else "give more text or raise dataset.tokens"
    texts = [(one.source, one.train_tokens, one.validation_tokens) for one in sources]
    for number, (source, *has) in enumerate(texts or [(dataset.source, train_tokens, validation_tokens)]):
        block = dataset.field_of(number)
        for split, tokens in zip(("train", "validation"), has, strict=True):
            if tokens < length + 1:  # the last token of a sequence has a target, too
                return (
                    f"{block}.source: {source} has {tokens} tokens of {split} text, fewer than one sequence of "
                    f"dataset.sequenceLength ({length}); {more}, lower sequenceLength, or change how much is "
                    f"held out ({block}.validationFraction)"
                )
    for field, training in trainings.items():
        batch = training.global_batch_size
        needed, most = batch * length + 1, (train_tokens - 1) // length
        if train_tokens < needed:
            named = f"dataset.source: {dataset.source} has" if dataset.source else "dataset.sources have"
            return (
                f"{named} {train_tokens} tokens of train text, fewer than one batch "
                f"takes: {field}.globalBatchSize ({batch}) x dataset.sequenceLength ({length}) + 1 = {needed}; {more}, "
                f"or lower sequenceLength or {field}.globalBatchSize (to {most} at most)"
            )
    return None


def packing(attention: DocumentAttention, *, prompts: bool = False) -> str:
    """How text becomes sequences, for those who read its figures. `prompts`: some of it is read and not learned."""
    seen = {
        DocumentAttention.SHARED: "so those in one sequence see each other",
        DocumentAttention.ISOLATED: "and those in one sequence do not see each other (documentAttention: Isolated)",
    }
    ends = "the token that ends a document and the one after it are trained and measured like all others"
    learned = "losses are means over what is learned: of a document with a prompt (promptColumn) what comes after it"
    return f"Documents are laid end to end, {seen[attention]}; {learned if prompts else ends}"


def learned_share(tokens: int, learned: int | None) -> str:
    """How many tokens of a text are learned, for those who read its figures; nothing where all are."""
    return "" if learned is None else f" ({learned:,} of them, {100 * learned / tokens:.1f} %, are learned)"


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

    @classmethod
    def over(cls, shares: Sequence["Share"], *, sequence_length: int, sequences: int) -> "Passes":
        """Of a training on so many sequences, over all of its texts."""
        of_each = of_sources(shares, sequence_length=sequence_length, sequences=sequences)
        per_epoch = sum(_per_epoch(share.tokens, sequence_length) for share in shares)
        return cls(
            epochs=sequences / per_epoch,
            tokens=sequences * sequence_length,
            unique_tokens=sum(seen.unique_tokens for seen in of_each),
        )

    def __str__(self) -> str:
        again = f", {100 * self.repeated:.0f} % of them seen before" if self.unique_tokens < self.tokens else ""
        return f"{self.tokens:,} tokens: {self.epochs:.3g} epochs, {self.unique_tokens:,} different ones{again}"


@dataclass(frozen=True)
class Share:
    """What a text is to a training: its weight, and the tokens that it has."""

    source: str
    weight: float
    tokens: int


def seen_in_words(shares: Sequence["Share"], *, sequence_length: int, sequences: int) -> str:
    """How often a training on so many sequences goes through its text; of several sources, through each."""
    said = str(Passes.over(shares, sequence_length=sequence_length, sequences=sequences))
    if len(shares) == 1:
        return said
    of_each = zip(shares, of_sources(shares, sequence_length=sequence_length, sequences=sequences), strict=True)
    return f"{said}; {', '.join(f'{share.source}: {seen.epochs:.3g} epochs' for share, seen in of_each)}"


MOST_EPOCHS = 4
"""Epochs up to which a repeated text is about as good as a new one (arXiv 2305.16264)."""


def of_sources(shares: Sequence[Share], *, sequence_length: int, sequences: int) -> list[Passes]:
    """How often a training on so many sequences goes through each of its texts, which it blends by weight."""
    total = sum(share.weight for share in shares)
    drawn = [round(sequences * share.weight / total) for share in shares] if len(shares) > 1 else [sequences]
    return [
        passes(text_tokens=share.tokens, sequence_length=sequence_length, sequences=count)
        for share, count in zip(shares, drawn, strict=True)
    ]


def repetitions(shares: Sequence[Share], *, sequence_length: int, sequences: int) -> list[str]:
    """A sentence for each of several sources that is repeated more often than it is worth."""
    if len(shares) == 1:
        return []
    of_each = of_sources(shares, sequence_length=sequence_length, sequences=sequences)
    return [
        f"{share.source} is repeated for {seen.epochs:.1f} epochs, and beyond {MOST_EPOCHS} repeated text teaches less "
        "and less (arXiv 2305.16264); give more of it, lower its weight, or train for fewer steps"
        for share, seen in zip(shares, of_each, strict=True)
        if seen.epochs > MOST_EPOCHS
    ]


def passes(*, text_tokens: int, sequence_length: int, sequences: int) -> Passes:
    """How often a training on so many sequences goes through a text of so many tokens, at least one sequence."""
    per_epoch = _per_epoch(text_tokens, sequence_length)
    return Passes(
        epochs=sequences / per_epoch,
        tokens=sequences * sequence_length,
        unique_tokens=min(sequences, per_epoch) * sequence_length,
    )


def _per_epoch(tokens: int, sequence_length: int) -> int:
    """Sequences in an epoch; one, where a text would have none."""
    return max(1, (tokens - 1) // sequence_length)


def _positions(teacher: Architecture) -> int:
    """Positions that the teacher knows. Where they are stretched linearly, configs give their number now before and now
    after that: the larger one is no reason to refuse anybody.
    """
    rope = teacher.rope_scaling or {}
    factor = max(1.0, float(rope.get("factor", 1.0))) if rope.get("rope_type") == "linear" else 1.0
    return int(teacher.max_position_embeddings * factor)
