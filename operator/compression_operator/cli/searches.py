"""What `compression plan` says of students whose sizes are searched."""

from collections.abc import Callable, Mapping
from typing import Any

from compression_operator.core.searches import PlannedSearch
from compression_operator.core.sizes import Hardware
from compression_pipeline.config import Candidate, human_bytes

from .common import console
from .tables import hours_in_words, print_table

HEADINGS = ("candidate", "layers", "hidden", "FFN", "heads", "parameters", "FLOPs a token", "memory")


def _told(figure: float | None, how: str = ".4f") -> str:
    return "" if figure is None else format(figure, how)


FOUND: Mapping[str, Callable[[Candidate], str]] = {
    "pruned": lambda one: _told(one.pruned_loss),
    "distilled": lambda one: _told(one.distilled_loss),
    "score": lambda one: _told(one.score, ".3f"),
    "tokens/s": lambda one: _told(one.tokens_per_second, ",.1f"),
}
"""What a search has found of a candidate: heading and cell, empty where it has not."""


def print_searches(found: Mapping[str, PlannedSearch], hardware: Hardware) -> None:
    """The candidates of each student, and what it costs to measure them."""
    for name, search in found.items():
        print(f"\n{name}: {_outcome(search, hardware)}")
        shown = [(heading, cell) for heading, cell in FOUND.items() if any(map(cell, search.candidates))]
        rows = [
            [
                str(number),
                *(f"{size:,}" for size in (one.layers, one.hidden_size, one.ffn_hidden_size, one.attention_heads)),
                f"{one.parameters:,}",
                f"{one.flops:.3g}",
                human_bytes(one.memory),
                *(cell(one) or "-" for _, cell in shown),
            ]
            for number, one in enumerate(search.candidates, start=1)
        ]
        print_table(console(), (*HEADINGS, *(heading for heading, _ in shown)), rows)


def to_json(found: Mapping[str, PlannedSearch]) -> dict[str, Any]:
    """The same for programs."""
    return {
        name: {
            "shapes": search.shapes,
            "measured": search.measured,
            "done": search.done,
            "timed": search.timed,
            "flops": search.flops,
            "flopsOfPruneAgain": search.again,
            "gpu": search.gpu,
            "gpuHours": search.gpu_hours,
            "candidates": [one.to_json() for one in search.candidates],
        }
        for name, search in found.items()
    }


def _outcome(search: PlannedSearch, hardware: Hardware) -> str:
    count = len(search.candidates)
    meet = f"{search.shapes:,} shape{' meets' if search.shapes == 1 else 's meet'} the target"
    if not search.measured:
        return f"{meet}; rank: Shape takes the first, the least cut one, and measures nothing"
    cost = f"{search.flops:.3g} FLOPs"
    if search.gpu is not None:
        cost += f", {hours_in_words(search.gpu_hours)} hours of one {search.gpu} at {hardware.mfu:.0%}"
    if search.asks:
        cost += f", and the questions of the task that ranks {' and '.join(search.asks)}"
    if search.again:
        cost += f"; prune measures importance again, because cache: Run shares no scores: {search.again:.3g} FLOPs"
    if search.done:
        return f"the search is done: it has measured {count}, the first is the best, and the other figures are its"
    if search.timed is not None:
        return (
            f"the search times the teacher and at most {search.timed} of {search.shapes:,} shapes, and measures up to "
            f"{count} that are fast enough ({cost}, were they these, the least cut ones); the other figures are the "
            "first one's"
        )
    return f"{meet}; the search measures {count} ({cost}), and the other figures are the first one's"
