"""distill: what a student won back, over the steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from compression_pipeline.config import (
    ENGINES,
    DistillConfig,
    DistillJob,
    DistillResult,
    EvaluateResult,
    GateFigures,
    Phase,
    losses_in_words,
    verdicts,
)
from compression_pipeline.report import words
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.charts import COLOURS, Figures, Level, LineChart, Series, line_chart
from compression_pipeline.report.data import Measured, RunData, StudentData
from compression_pipeline.report.resource import Progress

from . import training
from .base import Fact, Panel, PhaseReport, Spec

NOTHING = GateFigures(None, None)


def validation_chart(run: RunData) -> LineChart | None:
    """Validation loss of every student over the steps of its distillation, and its teacher's, before and after."""
    teacher = run.teacher
    levels: list[Level] = []
    if teacher.corrected_loss is not None:
        levels.append(Level("corrected teacher", teacher.corrected_loss))
    if teacher.loss is not None:
        levels.append(Level("teacher", teacher.loss, strong=not levels))
    histories = [(student.name, student.history.validation) for student in run.students]
    return line_chart(
        "Validation loss while distilling",
        [
            Series(name, points, number % COLOURS, dots=len(points) <= training.MOST_DOTS)
            for number, (name, points) in enumerate(histories)
        ],
        note="nats per token, the same held-out text for every model; step 0 is the student straight after pruning",
        levels=levels,
    )


def task_charts(run: RunData) -> Iterator[LineChart | None]:
    """What every student scored in each task over the steps of its distillation, and what its teachers score."""
    for task in dict.fromkeys(name for student in run.students for name in student.history.scores):
        curves = [(student.name, student.history.scores.get(task, ())) for student in run.students]
        yield line_chart(
            f"{task} while distilling",
            [
                Series(name, points, number % COLOURS, dots=len(points) <= training.MOST_DOTS)
                for number, (name, points) in enumerate(curves)
            ],
            note="score of the weights rounded as they are exported; step 0 is the student straight after pruning",
            levels=_teachers_scores(run, task),
        )


def _teachers_scores(run: RunData, task: str) -> list[Level]:
    levels: list[Level] = []
    for phase, name in ((Phase.BASELINE_CORRECTED, "corrected teacher"), (Phase.BASELINE, "teacher")):
        result = run.results.get(phase)
        scores = result.tasks if isinstance(result, EvaluateResult) else []
        levels += [Level(name, score.score, strong=not levels) for score in scores if score.name == task]
    return levels


def _panels(run: RunData, student: StudentData, colour: int) -> Iterator[Panel | None]:
    yield line_chart(
        "Distillation loss",
        [Series("training", student.history.loss, colour)],
        note="the sum of its losses on the training text, a mean over tokens",
        name_lines=False,
    )
    result = student.results.get(Phase.DISTILL)
    if isinstance(result, DistillResult) and (rows := [*training.by_source(run.teacher.prepared, result)]):
        yield Figures("Validation loss by source", "nats per token, over the held-out text of each source", rows)


def _facts(run: RunData) -> Iterator[Fact]:
    for whose, settings in _distillations(run.spec):
        theirs = [student for student in run.students if whose in ("", f" of {student.name}")]
        used = {student.precision for student in theirs}
        said = training.in_words(run, settings, used.pop() if len(used) == 1 else None)
        yield f"Distillation{whose}", f"{said}. Loss: {_losses(settings, theirs)}"
        if read := _told(theirs, lambda result: result.read_in_place):
            yield f"Read in place of the teacher{whose}", read
        if every := settings.get("exportEvery"):
            folders = [
                f"work/{step.fingerprint}/exports{_newest(step.progress)}"
                for student in theirs
                for step in student.steps
                if step.phase == Phase.DISTILL and step.fingerprint
            ]
            yield (
                f"Intermediate checkpoints{whose}",
                f"asked for every {every:,} steps; those of a student that was distilled here are in "
                f"{', '.join(folders)} of the store",
            )
    for student in run.students:
        result = student.results.get(Phase.DISTILL)
        if isinstance(result, DistillResult) and result.best_step is not None:
            yield f"Best of {student.name}", f"the weights after step {result.best_step:,} are kept ({_won(result)})"
        if isinstance(result, DistillResult) and result.extended_steps:
            yield f"Extension of {student.name}", f"{result.extended_steps:,} steps more, because it missed accept"


def _newest(progress: Progress) -> str:
    """Of the exports on the way the newest that was told of, in words."""
    return f" (newest: after step {progress.exported_step:,})" if progress.exported_step is not None else ""


def _won(result: DistillResult) -> str:
    """By what the kept weights were chosen."""
    return "keepBest" if result.best_score is None else f"keepBest: score {result.best_score:.4f}"


def _losses(settings: Mapping[str, Any], students: Sequence[StudentData]) -> str:
    """What students were trained to match: as distill told, else by a spec that another version may have written."""
    if told := _told(students, lambda result: result.losses):
        return told
    given = {"losses": settings["losses"]} if "losses" in settings else {}
    try:
        return losses_in_words(DistillConfig.model_validate({"steps": 1, "warmupSteps": 0, **given}).losses)
    except ValidationError:
        return ", ".join(str(loss.get("type")) for loss in settings["losses"])


def _told(students: Sequence[StudentData], of: Callable[[DistillResult], str | None]) -> str:
    """What distill told of each student; once where it is the same of all, and empty where it is nothing."""
    results = ((student.name, student.results.get(Phase.DISTILL)) for student in students)
    told = {name: words for name, one in results if isinstance(one, DistillResult) and (words := of(one))}
    same = len(set(told.values())) == 1
    return next(iter(told.values())) if same else "; ".join(f"{name}: {words}" for name, words in told.items())


def _distillations(spec: Spec) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What students learn by, and whose it is: a student's own holds in place of the run's, which may be nobody's."""
    students = spec.get("students") or []
    if spec.get("distill") and not all(student.get("distill") for student in students):
        yield "", spec["distill"]
    for student in students:
        if student.get("distill"):
            yield f" of {student['name']}", student["distill"]


def _seeds(spec: Spec) -> Iterator[tuple[str, Any]]:
    for whose, settings in _distillations(spec):
        yield f"distill{whose}", settings.get("seed", DistillConfig.model_fields["seed"].default)


def _warnings(run: RunData) -> Iterator[str]:
    for _, settings in _distillations(run.spec):
        yield from training.repeated(run, settings)
    for student in run.students:
        points = [y for _, y in student.history.validation]
        if student.distilled_loss is None or len(points) < 3:
            continue
        lowest, last = min(points), points[-1]
        if last > lowest * 1.01:
            yield (
                f"{student.name}: validation loss rose again to {words.loss(last)} after a low of "
                f"{words.loss(lowest)}: fewer distill.steps, more text or a lower learning rate may do better."
            )
        elif points[-2] - last > 0.01 * last:
            yield (
                f"{student.name}: validation loss was still falling at the end; more distill.steps would win back more."
            )


def _card(ancestry: Ancestry) -> Iterator[str]:
    job, result = ancestry.distill
    yield (
        f"**Distillation.** {_losses_text(job, result)}."
        + (f" Read in place of the teacher: {result.read_in_place}." if result.read_in_place else "")
        + f" Sequences of {job.sequence_length} tokens; {ENGINES[job.engine].trains_with}."
    )
    if result.extended_steps and job.accept is not None:
        asked = " and ".join(f"{verdict.criterion} {verdict.limit:g}" for verdict in verdicts(job.accept, NOTHING))
        yield (
            f"After {job.distill.steps:,} steps it missed what it was asked for ({asked}), so it was trained on for "
            f"{result.extended_steps:,} steps at the final learning rate."
        )
    if result.best_step is not None:
        figure = "validation loss was the lowest"
        if result.best_score is not None:
            figure = f"score in {job.distill.best_task}, {result.best_score:.4g}, was the best"
        yield f"Kept are the weights after step {result.best_step:,}, whose {figure}."
    yield training.card_table(ancestry, Phase.DISTILL, job, job.distill, more=result.extended_steps or 0)


def _losses_text(job: DistillJob, result: DistillResult) -> str:
    said = result.losses or losses_in_words(job.distill.losses)
    alone = "; plus " not in said
    return f"{said[0].upper()}{said[1:]}, {'mean over tokens; no other loss' if alone else 'each a mean over tokens'}"


def _measured(result: DistillResult) -> Measured:
    return Measured(
        taught_by=result.teacher_loss,
        pruned=result.pruned_loss,
        distilled=result.distilled_loss,
        rounded=result.rounded_losses,
    )


REPORT = PhaseReport(
    charts=lambda run: [validation_chart(run), *task_charts(run)],
    panels=_panels,
    facts=_facts,
    seeds=_seeds,
    warnings=_warnings,
    losses=_measured,
    card=_card,
)
