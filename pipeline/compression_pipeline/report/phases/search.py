"""search: the shapes that were measured, and which of them was cut."""

from collections.abc import Callable, Iterator, Sequence

from compression_pipeline.config import Candidate, Phase, SearchResult, TaskScore, human_bytes
from compression_pipeline.report import markdown
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.charts import COLOURS, Intervals, LineChart, Series, Table, line_chart, whiskers
from compression_pipeline.report.data import RunData, StudentData
from compression_pipeline.report.words import DASH, bounds, count, loss, score_text

from .base import Fact, Panel, PhaseReport


def _result(student: StudentData) -> SearchResult | None:
    found = student.results.get(Phase.SEARCH)
    return found if isinstance(found, SearchResult) else None


def _panels(run: RunData, student: StudentData, colour: int) -> Iterator[Panel | None]:
    found = _result(student)
    if found is not None:
        if found.teacher_score is not None:
            yield _sizes_and_scores(found, found.teacher_score, colour)
            yield _scores(found, found.teacher_score, colour)
        yield _sizes_and_losses(found, colour)
        first = "lowest loss" if found.teacher_score is None else "best score"
        yield Table("Candidates", f"{_note(found)}; the first has the {first} and was chosen", *_table(found))


def _points(found: SearchResult, figure: Callable[[Candidate], float | None], colour: int) -> Sequence[Series]:
    """A figure of each candidate over its size, named by its place in the table."""
    return [
        Series(
            _called(place),
            [(one.parameters, value)],
            colour if place == 1 else (colour + 1) % COLOURS,
            dots=True,
        )
        for place, one in enumerate(found.candidates, start=1)
        if (value := figure(one)) is not None
    ]


def _called(place: int) -> str:
    return "1, chosen" if place == 1 else str(place)


def _sizes_and_losses(found: SearchResult, colour: int) -> LineChart | None:
    points = _points(found, lambda one: one.loss(distilled=_distilled(found)), colour)
    note = (
        f"nats per token on held-out text after {_after(found)}, by size; the teacher's is {loss(found.teacher_loss)}"
    )
    return line_chart("Loss of the candidates", points, note=note, x_label="parameters", scattered=True)


def _sizes_and_scores(found: SearchResult, whole: TaskScore, colour: int) -> LineChart | None:
    points = _points(found, lambda one: one.score, colour)
    note = f"{whole.name} ({whole.measure}) after {_after(found)}, by size; the teacher's is {whole.score:.3f}"
    return line_chart("Score of the candidates", points, note=note, x_label="parameters", scattered=True)


def _scores(found: SearchResult, whole: TaskScore, colour: int) -> Intervals:
    scored = [
        (_called(place), colour if place == 1 else (colour + 1) % COLOURS, score)
        for place, one in enumerate(found.candidates, start=1)
        if (score := one.task_score(whole)) is not None
    ]
    bars = [(name, own, *bounds(score), score_text(score)) for name, own, score in [("teacher", None, whole), *scored]]
    asked = f"{whole.name} ({whole.measure}, {whole.samples:,} questions)"
    return Intervals("Scores of the candidates", "with 95 % confidence intervals", [(asked, whiskers(bars))])


def _distilled(found: SearchResult) -> bool:
    return any(one.distilled_loss is not None for one in found.candidates)


def _after(found: SearchResult) -> str:
    return "a short distillation" if _distilled(found) else "pruning"


def _note(found: SearchResult) -> str:
    meet = "1 shape meets" if found.shapes == 1 else f"{found.shapes:,} shapes meet"
    measured, teacher = len(found.candidates), found.teacher_generation
    if found.timed is not None and teacher is not None:
        return (
            f"{found.shapes:,} of {found.timed:,} shapes that were timed on {teacher.device} are fast enough (the "
            f"teacher generates {teacher.tokens_per_second:,.1f} tokens/s), and the least cut were measured: {measured}"
        )
    least = "the least cut one was" if measured == 1 else f"{measured} of the least cut ones were"
    return f"{meet} the target, and {least} measured"


def _table(found: SearchResult) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Headings and rows."""
    trained, whole = _distilled(found), found.teacher_score
    headings = ["Layers", "Hidden", "FFN", "Heads", "Parameters", "FLOPs a token", "Memory", "Loss when pruned"]
    headings += ["After a short distillation"] if trained else []
    headings += [f"Score in {whole.name}"] if whole is not None else []
    headings += ["Tokens/s"] if found.timed is not None else []
    rows = [
        [
            *(f"{size:,}" for size in (one.layers, one.hidden_size, one.ffn_hidden_size, one.attention_heads)),
            count(one.parameters),
            count(one.flops),
            human_bytes(one.memory),
            loss(one.pruned_loss),
            *([loss(one.distilled_loss)] if trained else []),
            *([score_text(score) if (score := one.task_score(whole)) else DASH] if whole is not None else []),
            *([f"{one.tokens_per_second or 0:,.1f}"] if found.timed is not None else []),
        ]
        for one in found.candidates
    ]
    return headings, rows


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
    whole = found.teacher_score
    by = "the loss on held-out text" if whole is None else f"the score in {whole.name} ({whole.measure})"
    teacher = "" if whole is None else f" The teacher's score is {score_text(whole)}."
    yield (
        f"**Search.** The shape was searched: {_note(found)}, by {by} after {_after(found)}.{teacher} Memory is of "
        "weights and cached keys and values, two bytes for each number."
    )
    yield markdown.table(*_table(found))


REPORT = PhaseReport(panels=_panels, facts=_facts, card=_card)
