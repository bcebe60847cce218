"""The report of a search: table, plots and card tell what candidates were compared by."""

import json
from typing import Any

from compression_pipeline.config import Candidate, GenerationFigures, Phase, SearchResult, TaskScore, Termination
from compression_pipeline.launcher.termination import fitted
from compression_pipeline.report.charts import Intervals, LineChart, Table
from compression_pipeline.report.phases.search import REPORT
from compression_pipeline.report.words import DASH

WHOLE = TaskScore(name="hellaswag", metric="acc_norm", score=0.8, stderr=0.01, samples=1000)


def candidate(parameters: int, **found: Any) -> Candidate:
    sizes = {"layers": 30, "hidden_size": 3072, "ffn_hidden_size": 9216, "attention_heads": 32}
    return Candidate(**sizes, parameters=parameters, flops=1.23456789012345e10, memory=9_000_000_000, **found)


def result(*candidates: Candidate, **told: Any) -> SearchResult:
    return SearchResult(shapes=7237, teacher_loss=2.0, validation_sequences=256, candidates=list(candidates), **told)


class Told:
    """What the report asks of a run and its student, and the card of an ancestry."""

    def __init__(self, found: SearchResult) -> None:
        self.results, self.name, self.students, self.made = {Phase.SEARCH: found}, "small", [self], {Phase.SEARCH: self}
        self.result = found


def panels(found: SearchResult) -> list[Any]:
    told: Any = Told(found)
    return list(REPORT.panels(told, told, 0))


def card(found: SearchResult) -> str:
    told: Any = Told(found)
    return "\n".join(REPORT.card(told))


def test_scores_are_shown_with_their_intervals_beside_the_teachers() -> None:
    best = candidate(4_000_000_000, pruned_loss=2.6, score=0.62, score_stderr=0.005)
    diverged = candidate(4_200_000_000)
    found = result(best, candidate(4_100_000_000, pruned_loss=2.5, score=0.6), diverged, teacher_score=WHOLE)
    sizes, scores, losses, table = panels(found)
    assert isinstance(sizes, LineChart) and sizes.title == "Score of the candidates" and "0.800" in sizes.note
    assert len(sizes.lines) == 2, "one computed no number"
    assert [mark.text for mark in sizes.marks] == ["1, chosen", "2"] and not sizes.labels, "each by its point"
    assert all(0 < at < 100 for mark in sizes.marks for at in (mark.x, mark.y))
    assert sizes.description == "1, chosen: 0.620; 2: 0.600"
    assert isinstance(scores, Intervals)
    [(asked, bars)] = scores.rows
    assert asked == "hellaswag (acc_norm, 1,000 questions)"
    assert [bar.name for bar in bars] == ["teacher", "1, chosen", "2"]
    assert bars[1].text == "0.620 ± 0.010"
    assert isinstance(losses, LineChart) and isinstance(table, Table)
    assert "best score and was chosen" in table.note and table.headings[-1] == "Score in hellaswag"
    assert [row[-1] for row in table.rows] == ["0.620 ± 0.010", "0.6", DASH]
    assert "by the score in hellaswag (acc_norm) after pruning. The teacher's score is 0.800 ± 0.020." in card(found)


def test_without_a_task_it_tells_losses_alone() -> None:
    first = candidate(4_000_000_000, pruned_loss=3.0, distilled_loss=2.4)
    found = result(first, candidate(4_100_000_000, pruned_loss=2.9, distilled_loss=2.5))
    losses, table = panels(found)
    assert losses.title == "Loss of the candidates" and "after a short distillation" in losses.note
    assert "lowest loss and was chosen" in table.note and table.headings[-1] == "After a short distillation"
    assert "by the loss on held-out text after a short distillation. Memory" in card(found)


def test_what_ten_candidates_came_to_fits_a_termination_message() -> None:
    third = 1 / 3
    each = candidate(
        800_000_000_000,
        pruned_loss=10 * third,
        distilled_loss=10 * third,
        score=third,
        score_stderr=third / 10,
        tokens_per_second=1000 * third,
    )
    found = result(*[each] * 10, teacher_score=WHOLE.model_copy(update={"name": "n" * 128, "filter": "f" * 64}))
    told = found.model_copy(update={"digest": "d" * 64}).to_json()
    text = fitted(Termination.model_validate({"class": "Done", "rank": 0, "message": "m" * 500, "result": told}))
    assert json.loads(text)["result"] == told


def test_speeds_are_shown_with_the_teachers_and_the_device() -> None:
    figures = GenerationFigures(tokens_per_second=41.0, first_token_seconds=0.1, device="NVIDIA H200")
    first = candidate(4_000_000_000, pruned_loss=3.0, tokens_per_second=60.25)
    found = result(first, timed=31, teacher_generation=figures).model_copy(update={"shapes": 9})
    _, table = panels(found)
    assert table.headings[-1] == "Tokens/s" and table.rows[0][-1] == "60.2"
    assert "9 of 31 shapes that were timed on NVIDIA H200 are fast enough" in card(found)
    assert "the teacher generates 41.0 tokens/s" in table.note
