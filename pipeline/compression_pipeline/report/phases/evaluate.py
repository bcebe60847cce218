"""evaluate: what the models scored and how fast they generate, each student beside its teachers."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from compression_pipeline.config import (
    EvaluateResult,
    GenerationConfig,
    GenerationFigures,
    Phase,
    Precision,
    StepResult,
    TaskScore,
    human_bytes,
)
from compression_pipeline.report import markdown
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.charts import Figures, Intervals, whiskers
from compression_pipeline.report.data import RunData, StudentData
from compression_pipeline.report.words import bounds, score_text

from .base import Fact, Panel, PhaseReport, Spec

TEACHERS = ((Phase.BASELINE, "teacher"), (Phase.BASELINE_CORRECTED, "corrected teacher"))

SAME = "the same batch and lengths for all"

Models = Sequence[tuple[str, int | None, EvaluateResult]]
"""Name, colour and evaluation of each, the student last."""


def _models(shared: Mapping[Phase, StepResult], own: EvaluateResult, name: str, colour: int) -> Models:
    found = [
        (name, None, result) for phase, name in TEACHERS if isinstance(result := shared.get(phase), EvaluateResult)
    ]
    return [*found, (name, colour, own)]


def _panels(run: RunData, student: StudentData, colour: int) -> Iterator[Panel | None]:
    own = student.results.get(Phase.EVALUATE)
    if not isinstance(own, EvaluateResult):
        return
    models = _models(run.results, own, student.name, colour)
    if own.tasks:
        yield _scores(models, own)
    if own.generation:
        yield _generation(models, own.generation, _lengths(run.spec))


def _scores(models: Models, own: EvaluateResult) -> Intervals:
    rows = []
    for task in own.tasks:
        of_task = [
            (name, colour, score)
            for name, colour, result in models
            for score in result.tasks
            if score.name == task.name
        ]
        bars = [(name, colour, *bounds(score), score_text(score)) for name, colour, score in of_task]
        shots = f", {task.shots} shot{'s' if task.shots > 1 else ''}" if task.shots else ""
        change = _change(task, _of_teacher(models, task))
        rows.append((f"{task.name} ({task.measure}{shots}, {task.samples:,} questions){change}", whiskers(bars)))
    return Intervals("Tasks", f"scores by lm-eval {own.harness} with 95 % confidence intervals", rows)


def _of_teacher(models: Models, task: TaskScore) -> TaskScore | None:
    """The teacher's score in the student's task, which is what a change is told of; not the corrected teacher's."""
    scores = [score for name, _, result in models[:-1] if name == "teacher" for score in result.tasks]
    return next((score for score in scores if score.name == task.name), None)


def _change(score: TaskScore, teacher: TaskScore | None) -> str:
    change = score.change(teacher)
    if change is None:
        return ""
    far = f"{abs(change):,.1f} % {'above' if change > 0 else 'below'}"
    return f": {'equal to' if change == 0 else far} the teacher's"


def _lengths(spec: Spec) -> str:
    """What was generated, in words: as the spec says, which another version may have written."""
    try:
        told = GenerationConfig.model_validate((spec.get("evaluate") or {}).get("generation") or {})
    except ValidationError:
        return SAME
    together = "one sequence at a time" if told.batch_size == 1 else f"{told.batch_size:,} sequences at once"
    return f"{told.new_tokens:,} tokens after {told.prompt_tokens:,} of a prompt, {together}"


def _generation(models: Models, own: GenerationFigures, how: str = SAME) -> Figures:
    rows = [
        (name, f"{told.tokens_per_second:,.1f} tokens/s", _other_figures(told, own.device))
        for name, _, result in models
        if (told := result.generation) is not None
    ]
    return Figures("Generation", f"plain transformers on {own.device}, {how}", rows)


def _other_figures(told: GenerationFigures, device: str) -> str:
    memory = f", {human_bytes(told.peak_memory_bytes)} of memory at most" if told.peak_memory_bytes else ""
    # Of another job, which may have run on another node, or in another run before.
    elsewhere = f"; measured on {told.device}, so it does not compare" if told.device != device else ""
    return f"first token after {1000 * told.first_token_seconds:,.1f} ms{memory}{elsewhere}"


def _facts(run: RunData) -> Iterator[Fact]:
    found = [
        result for student in run.students if isinstance(result := student.results.get(Phase.EVALUATE), EvaluateResult)
    ]
    if found and found[0].tasks:
        yield (
            "Evaluation",
            f"lm-eval {found[0].harness}, computed in {_arithmetic(found[0])}; each student's weights rounded as "
            "they are exported",
        )


def _arithmetic(result: EvaluateResult) -> str:
    names = {precision.value: precision.words for precision in Precision}
    return names.get(result.precision, result.precision)


def _card(ancestry: Ancestry) -> Iterator[str]:
    made = ancestry.made.get(Phase.EVALUATE)
    if made is None:
        return
    own: EvaluateResult = made.result
    shared = {phase: ancestry.made[phase].result for phase, _ in TEACHERS if phase in ancestry.made}
    models = _models(shared, own, "this model", 0)
    names = [name for name, _, _ in models]
    yield from unscored(ancestry)
    if own.tasks:
        yield (
            f"**Tasks.** Scores by lm-eval {own.harness} with half of their 95 % confidence intervals, in "
            f"{_arithmetic(own)}, the weights of this model rounded as they are here:"
        )
        yield markdown.table(("Task", "Metric", "Shots", "Questions", *names, "Change"), _rows(models, own))
    if own.generation:
        yield f"**Generation.** In plain transformers on {own.generation.device}, {SAME}:"
        yield markdown.table(
            ("Model", "Tokens/s", ""),
            [(name, speed, more) for name, speed, more in _generation(models, own.generation).rows],
        )


def unscored(ancestry: Ancestry) -> Iterator[str]:
    """Which teachers a student that was evaluated is told without."""
    if Phase.EVALUATE not in ancestry.made:
        return
    if Phase.BASELINE not in ancestry.made:
        yield "The teacher has no scores to compare with, because its evaluation failed."
    if ancestry.finetuned and Phase.BASELINE_CORRECTED not in ancestry.made:
        yield "The corrected teacher has no scores to compare with, because its evaluation failed."


def _rows(models: Models, own: EvaluateResult) -> Iterator[Sequence[str]]:
    for task in own.tasks:
        scores = [next((s for s in result.tasks if s.name == task.name), None) for _, _, result in models]
        change = task.change(_of_teacher(models, task))
        cells = ["" if score is None else score_text(score) for score in scores]
        told = "" if change is None else f"{change:+.1f} %"
        yield (task.name, task.measure, str(task.shots), f"{task.samples:,}", *cells, told)


REPORT = PhaseReport(panels=_panels, facts=_facts, card=_card)

TOLD_WITH_THE_STUDENT = PhaseReport()
"""Of the phases whose figures stand beside a student's."""
