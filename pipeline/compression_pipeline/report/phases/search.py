"""search: the shapes that were measured, and which of them was cut."""

from collections.abc import Iterator, Sequence

from compression_pipeline.config import Candidate, Phase, SearchResult, human_bytes
from compression_pipeline.report import markdown
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.charts import COLOURS, LineChart, Series, Table, line_chart
from compression_pipeline.report.data import RunData, StudentData
from compression_pipeline.report.words import count, loss

from .base import Fact, Panel, PhaseReport


def _result(student: StudentData) -> SearchResult | None:
    found = student.results.get(Phase.SEARCH)
    return found if isinstance(found, SearchResult) else None


def _panels(run: RunData, student: StudentData, colour: int) -> Iterator[Panel | None]:
    found = _result(student)
    if found is not None:
        yield _sizes_and_losses(found, colour)
        yield Table(
            "Candidates", f"{_note(found)}; the first has the lowest loss and was chosen", *_table(found.candidates)
        )


def _sizes_and_losses(found: SearchResult, colour: int) -> LineChart | None:
    """The loss of each candidate over its size, named by its place in the table."""
    distilled = found.candidates[0].distilled_loss is not None
    points = [
        Series(
            "1, chosen" if place == 1 else str(place),
            [(one.parameters, found_loss)],
            colour if place == 1 else (colour + 1) % COLOURS,
            dots=True,
        )
        for place, one in enumerate(found.candidates, start=1)
        if (found_loss := one.loss(distilled=distilled)) is not None
    ]
    after = "a short distillation" if distilled else "pruning"
    note = f"nats a token on held-out text after {after}, by size; the teacher's is {loss(found.teacher_loss)}"
    return line_chart("Loss of the candidates", points, note=note, x_label="parameters")


def _note(found: SearchResult) -> str:
    meet = "1 shape meets" if found.shapes == 1 else f"{found.shapes:,} shapes meet"
    measured = len(found.candidates)
    least = "the least cut one was" if measured == 1 else f"{measured} of the least cut ones were"
    return f"{meet} the target, and {least} measured"


def _table(candidates: Sequence[Candidate]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Headings and rows."""
    trained = any(one.distilled_loss is not None for one in candidates)
    headings = ["Layers", "Hidden", "FFN", "Heads", "Parameters", "FLOPs a token", "Memory", "Loss when pruned"]
    rows = [
        [
            *(f"{size:,}" for size in (one.layers, one.hidden_size, one.ffn_hidden_size, one.attention_heads)),
            count(one.parameters),
            f"{one.flops:.3g}",
            human_bytes(one.memory),
            loss(one.pruned_loss),
            *([loss(one.distilled_loss)] if trained else []),
        ]
        for one in candidates
    ]
    return [*headings, *(["After a short distillation"] if trained else [])], rows


def _facts(run: RunData) -> Iterator[Fact]:
    alone = len(run.students) == 1
    for student in run.students:
        found = _result(student)
        if found is not None:
            yield "Search of the shape" if alone else f"Search of the shape of {student.name}", _note(found)


def _card(ancestry: Ancestry) -> Iterator[str]:
    made = ancestry.made.get(Phase.SEARCH)
    if made is None:
        return
    found: SearchResult = made.result
    by = "a short distillation" if found.candidates[0].distilled_loss is not None else "pruning"
    yield (
        f"**Search.** The shape was searched: {_note(found)}, by the loss on held-out text after {by}. Memory is of "
        "weights and cached keys and values, two bytes for each number."
    )
    yield markdown.table(*_table(found.candidates))


REPORT = PhaseReport(panels=_panels, facts=_facts, card=_card)
