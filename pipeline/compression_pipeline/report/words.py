"""Numbers and findings in words: what a person who decides whether to ship a student wants to read first."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from compression_pipeline.config import TaskScore, human_bytes

from .data import StudentData
from .resource import Step

WON_BACK = 0.8
"""Share of the lost validation loss that a student must win back to be called good."""

DASH = "\N{EN DASH}"


class Tone(StrEnum):
    """How a student did; names a style of report.css."""

    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"
    OPEN = "open"


@dataclass(frozen=True)
class Verdict:
    """What to think of one student: a word, a sentence, and what speaks for it in detail."""

    tone: Tone
    badge: str
    sentence: str
    details: Sequence[str] = ()


def count(value: float | None) -> str:
    """A large number in three digits: 1.84 M."""
    if value is None:
        return DASH
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            shown = float(f"{value / (1e3 if unit == 'k' else size):.3g}")
            return f"{shown:.{2 if shown < 10 else 1 if shown < 100 else 0}f} {unit}"
    return f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes, as Hugging Face counts them."""
    return DASH if value is None else human_bytes(value)


def share(value: float | None) -> str:
    """A share in whole per cent."""
    return DASH if value is None else f"{value * 100:.0f} %"


def loss(value: float | None) -> str:
    """A loss in nats per token."""
    return DASH if value is None else f"{value:.3f}"


def perplexity(value: float | None) -> str:
    """The perplexity of a loss in nats per token."""
    return DASH if value is None or value > 100 else f"{math.exp(value):,.1f}"


def speed(value: float | None) -> str:
    """Tokens per second."""
    return f"{value:,.0f}" if value else DASH


def duration(seconds: float | None) -> str:
    """A time that a person can compare: 48 s, 3 min 5 s, 2 h 10 min."""
    if seconds is None:
        return DASH
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def bounds(score: TaskScore) -> tuple[float, float, float]:
    """The ends of a score's interval, and the score between them."""
    low, high = score.interval or (score.score, score.score)
    return low, score.score, high


def score_text(score: TaskScore) -> str:
    """A score with half of its 95 % confidence interval."""
    if score.interval is None:
        return f"{score.score:.4g}"
    return f"{score.score:.3f} \N{PLUS-MINUS SIGN} {score.interval[1] - score.score:.3f}"


def verdict(student: StudentData) -> Verdict:
    """The finding on one student: by its gate, its figures, or the step where it stands."""
    found = _finding(student)
    if not student.gate or any(criterion.met is None for criterion in student.gate):
        return found
    missed = [criterion for criterion in student.gate if criterion.met is False]
    told = f"It {'misses' if missed else 'meets'} accept: {'; '.join(map(str, missed or student.gate))}."
    details = [told, *found.details]
    if missed:
        return replace(found, tone=Tone.POOR, badge="Misses accept", details=details)
    return replace(found, details=details)


def _finding(student: StudentData) -> Verdict:
    recovered, final, teacher = student.recovered, student.distilled_loss, student.teacher_loss
    details = list(_details(student, final, teacher)) if final is not None and teacher is not None else []
    unfinished = _unfinished(student)
    if unfinished is not None:
        return replace(unfinished, details=details)
    if final is None or teacher is None:
        return Verdict(Tone.OPEN, "No figures", "Its validation losses are not known.")
    of_teacher = f"{share(student.ratio)} of the teacher's parameters"
    if student.pruned_loss is not None and final > student.pruned_loss:
        sentence = f"With {of_teacher} it is worse after distillation than before it."
        return Verdict(Tone.POOR, "Worse than pruned", sentence, details)
    if final <= teacher:
        sentence = f"With {of_teacher} it predicts the text as well as its teacher."
        return Verdict(Tone.GOOD, "Nothing lost", sentence, details)
    if recovered is None:
        sentence = f"With {of_teacher} its validation loss is {loss(final)}; pruning alone had cost nothing."
        return Verdict(Tone.FAIR, "Worse than pruned", sentence, details)
    sentence = f"With {of_teacher} it won back {share(recovered)} of the validation loss that pruning cost."
    if recovered >= WON_BACK:
        return Verdict(Tone.GOOD, f"{share(recovered)} won back", sentence, details)
    tone = Tone.FAIR if recovered >= WON_BACK / 2 else Tone.POOR
    return Verdict(tone, f"{share(recovered)} won back", sentence, details)


def _unfinished(student: StudentData) -> Verdict | None:
    """The finding on a student that has no exported checkpoint (yet)."""
    failed = next((step for step in student.steps if step.state == "Failed"), None)
    if failed is not None:
        sentence = f"It failed in {failed.phase}: {failed.reason or 'no reason is recorded'}"
        return Verdict(Tone.POOR, f"Failed in {failed.phase}", sentence)
    if any(step.state == "Skipped" for step in student.steps):
        return Verdict(Tone.POOR, "Never ran", "A step that it needs failed, so it was not made.")
    waiting = next((step for step in student.steps if step.state != "Succeeded"), None)
    if waiting is None and student.steps:
        return None
    if waiting is None or waiting.state == "Pending":
        where = f"It waits for {waiting.phase}." if waiting else "Its steps are not planned yet."
        return Verdict(Tone.OPEN, "Not finished", where)
    step, total = waiting.progress.step, waiting.progress.total_steps
    progress = f", step {step:,} of {total:,}" if step is not None and total else ""
    return Verdict(Tone.OPEN, "Not finished", f"It is in {waiting.phase}{progress}.")


def _details(student: StudentData, final: float, teacher: float) -> Iterator[str]:
    gap = final - teacher
    more = math.expm1(gap)
    than = f"{100 * more:,.1f} % higher than" if gap > 0 else "no higher than"
    yield (
        f"Validation loss {loss(final)}, its teacher's {loss(teacher)}: perplexity {perplexity(final)}, {than} the "
        f"teacher's {perplexity(teacher)}."
    )
    if student.pruned_loss is not None:
        yield f"Straight after pruning the loss was {loss(student.pruned_loss)}."
    if student.export is not None:
        error = student.export.relative_error
        how = f"are within {error:.1e} of" if error else "equal, to the last bit,"
        yield (
            f"The exported checkpoint ({size(student.export.weights)}, {student.export.dtype}) was loaded in plain "
            f"transformers: its logits {how} the trained student's."
        )


def step_note(step: Step) -> str:
    """What stands beside a step in the table of steps."""
    if step.cached:
        return "found in the store, not run again"
    if step.state == "Succeeded":
        return f"attempt {step.attempt}" if step.attempt > 1 else ""
    return step.reason
