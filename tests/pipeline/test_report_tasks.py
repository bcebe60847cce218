"""What report and card show of evaluations."""

import pytest

from compression_pipeline.config import EvaluateResult, GenerationFigures, Phase, TaskScore
from compression_pipeline.report.charts import Intervals
from compression_pipeline.report.phases import evaluate


def result(score: float, speed: float) -> EvaluateResult:
    told = TaskScore(name="calls", metric="acc", score=score, stderr=0.05, samples=100, shots=5)
    figures = GenerationFigures(
        tokens_per_second=speed, first_token_seconds=0.0125, peak_memory_bytes=2_000_000_000, device="CPU"
    )
    return EvaluateResult(tasks=[told], generation=figures, harness="0.4.13", precision="FP32")


def test_a_student_stands_beside_its_teachers_on_one_scale() -> None:
    models = evaluate._models({Phase.BASELINE: result(0.5, 10)}, result(0.4, 25), "width", 2)
    shown = evaluate._scores(models, models[-1][2])
    assert isinstance(shown, Intervals)
    [(title, [teacher, student])] = shown.rows
    assert title == "calls (acc, 5 shots, 100 questions): 20.0 % below the teacher's"
    assert [teacher.name, teacher.colour, student.name, student.colour] == ["teacher", None, "width", 2]
    assert student.text == "0.400 ± 0.098"
    # The scale ends 4 % beyond what any interval reaches.
    assert (student.line, student.dot) == ("M37.0 500H650.1", "M343.6 500h0")
    assert (teacher.line, teacher.dot) == ("M349.9 500H963.0", "M656.4 500h0")


def test_a_score_is_told_as_above_or_below_the_teachers() -> None:
    for score, told in ((0.5, ": equal to the teacher's"), (0.6, ": 20.0 % above the teacher's")):
        models = evaluate._models({Phase.BASELINE: result(0.5, 10)}, result(score, 25), "width", 2)
        [(title, _)] = evaluate._scores(models, models[-1][2]).rows
        assert title.endswith(told)


def test_what_was_generated_is_told_with_its_speed() -> None:
    lengths = {"promptTokens": 1024, "newTokens": 16}
    for batch, told in ((1, "one sequence at a time"), (8, "8 sequences at once")):
        spec = {"evaluate": {"generation": {**lengths, "batchSize": batch}}}
        assert evaluate._lengths(spec) == f"16 tokens after 1,024 of a prompt, {told}"
    assert evaluate._lengths({"evaluate": {"generation": {"of": "another version"}}}) == evaluate.SAME


def test_scores_of_other_questions_are_not_compared() -> None:
    [score], [other] = result(0.4, 1).tasks, result(0.5, 1).tasks
    assert score.change(other) == pytest.approx(-20.0)
    for field, value in (("metric", "acc_norm"), ("samples", 99), ("shots", 0), ("score", 0.0)):
        assert score.change(other.model_copy(update={field: value})) is None
    assert score.change(None) is None


def test_speeds_are_shown_side_by_side() -> None:
    models = evaluate._models({Phase.BASELINE: result(0.5, 10)}, result(0.4, 25), "width", 2)
    told = models[-1][2].generation
    assert told
    rows = evaluate._generation(models, told).rows
    assert rows[0] == ("teacher", "10.0 tokens/s", "first token after 12.5 ms, 2.0 GB of memory at most")
    assert rows[1][1] == "25.0 tokens/s"


def test_speeds_of_another_device_are_told_not_to_compare() -> None:
    teacher = result(0.5, 10)
    assert teacher.generation
    moved = teacher.model_copy(update={"generation": teacher.generation.model_copy(update={"device": "NVIDIA A100"})})
    models = evaluate._models({Phase.BASELINE: moved}, result(0.4, 25), "width", 2)
    told = models[-1][2].generation
    assert told
    rows = evaluate._generation(models, told).rows
    assert rows[0][2].endswith("of memory at most; measured on NVIDIA A100, so it does not compare")
    assert "measured on" not in rows[1][2]
