"""How often the trainings of a run go through its text, as `compression plan` tells it."""

from collections.abc import Sequence
from typing import Any

from compression_operator.api.resolved import Resolved
from compression_operator.api.spec import CompressionRunSpec
from compression_pipeline.config import Passes, of_sources, repetitions, seen_in_words

_WARNS_OF = "warning: "


def passes_in_words(spec: CompressionRunSpec, resolved: Resolved | None) -> Sequence[str]:
    """A line for each training, and one for each source that it repeats too often.

    `resolved`: what prepare found, where it has run and its sources are the same as then.
    """
    trainings, shares = spec.trainings(), resolved.shares if resolved is not None else []
    if not shares:
        return [f"{', '.join(trainings)}: how often the text is gone through is told once prepare has run"]
    found: list[str] = []
    for field, training in trainings.items():
        size = _size(spec, training.steps * training.global_batch_size)
        found.append(f"{field}: {seen_in_words(shares, **size)}")
        found += [f"{_WARNS_OF}{field}: {sentence}" for sentence in repetitions(shares, **size)]
    return found


def passes_to_json(spec: CompressionRunSpec, resolved: Resolved | None) -> dict[str, Any] | None:
    """Training -> its epochs and tokens, and the epochs of each of several sources; None where they are not known."""
    shares = resolved.shares if resolved is not None else []
    if not shares:
        return None
    found: dict[str, Any] = {}
    for field, training in spec.trainings().items():
        size = _size(spec, training.steps * training.global_batch_size)
        seen = Passes.over(shares, **size)
        found[field] = {"epochs": seen.epochs, "tokens": seen.tokens, "uniqueTokens": seen.unique_tokens}
        if len(shares) > 1:
            each = zip(shares, of_sources(shares, **size), strict=True)
            found[field]["sources"] = [{"source": share.source, "epochs": one.epochs} for share, one in each]
    return found


def _size(spec: CompressionRunSpec, sequences: int) -> dict[str, int]:
    return {"sequence_length": spec.dataset.sequence_length, "sequences": sequences}
