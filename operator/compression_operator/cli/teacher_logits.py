"""What `plan` tells of the teachers' logits that distillations will read."""

from collections.abc import Iterator
from typing import Any

from compression_operator.core.plan import Plan
from compression_pipeline.config import LogitsConfig, human_bytes


def logits_to_json(planned: Plan) -> dict[str, Any]:
    """By step: what it will write."""
    return {
        name: {
            "sequences": logits.sequences,
            "tokens": tokens,
            "topK": logits.top_k,
            "bytesPerToken": logits.bytes_per_token,
            "bytes": tokens * logits.bytes_per_token,
        }
        for name, logits, tokens in _written(planned)
    }


def logits_in_words(planned: Plan) -> Iterator[str]:
    """A line for each step; one that writes the same as one before it says so."""
    first: dict[LogitsConfig, str] = {}
    for name, logits, tokens in _written(planned):
        if logits in first:
            yield f"{name}: the same as {first[logits]}, which is read"
            continue
        first[logits] = name
        yield (
            f"{name}: the teacher's {logits.top_k} likeliest tokens after each of {tokens:,} tokens, "
            f"{logits.bytes_per_token:,} bytes a token, {human_bytes(tokens * logits.bytes_per_token)} in all; their "
            "share of the probability is told once it has run (logits.massKept)"
        )


def _written(planned: Plan) -> Iterator[tuple[str, LogitsConfig, int]]:
    for step in planned.steps:
        logits = step.configuration.get("logits")
        if isinstance(logits, LogitsConfig):
            yield step.name, logits, logits.sequences * step.configuration["sequence_length"]
