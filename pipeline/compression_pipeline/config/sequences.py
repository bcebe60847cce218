"""Which sequences a teacher and a text are good for: checked before any GPU is asked for, and by who trains."""

from .architecture import Architecture
from .sources import DatasetConfig


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


def text_fault(dataset: DatasetConfig, *, train_tokens: int, validation_tokens: int) -> str | None:
    """What is wrong with so many tokens of text; None where there is a sequence of each split."""
    length = dataset.sequence_length
    for split, tokens in (("train", train_tokens), ("validation", validation_tokens)):
        if tokens < length + 1:  # the last token of a sequence has a target, too
            return (
                f"dataset.source: {dataset.source} has {tokens} tokens of {split} text, fewer than one sequence of "
                f"dataset.sequenceLength ({length}); give more text, lower sequenceLength, or change how much is held "
                "out (dataset.validationFraction)"
            )
    return None


def _positions(teacher: Architecture) -> int:
    """Positions that the teacher knows. Where they are stretched linearly, configs give their number now before and now
    after that: the larger one is no reason to refuse anybody.
    """
    rope = teacher.rope_scaling or {}
    factor = max(1.0, float(rope.get("factor", 1.0))) if rope.get("rope_type") == "linear" else 1.0
    return int(teacher.max_position_embeddings * factor)
