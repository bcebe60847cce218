"""logits: how much of its teacher's expectations a student learns from."""

from collections.abc import Iterator

from compression_pipeline.config import LogitsResult, Phase, human_bytes
from compression_pipeline.report.charts import Figures
from compression_pipeline.report.data import RunData, StudentData

from .base import Panel, PhaseReport

LITTLE = 0.9
"""Share of the teacher's probability below which a reader is told that more could be kept. In the demo, with four
fifths of it, students end 0.02 to 0.03 nats above those that learn from the teacher itself.
"""


def _panels(run: RunData, student: StudentData, colour: int) -> Iterator[Panel | None]:
    if (result := _of(student)) is None:
        return
    rows = [
        ("likeliest tokens", f"{result.top_k:,}", "kept after each token of the text"),
        ("probability kept", f"{100 * result.mass_kept:.1f} %", "mean share of the teacher's probability"),
        ("text", f"{result.tokens:,} tokens", "in the order of the distillation"),
        ("size", human_bytes(result.tokens * result.bytes_per_token), f"{result.bytes_per_token:,} bytes a token"),
    ]
    if result.tokens_per_second is not None:
        rows.append(("speed", f"{result.tokens_per_second:,.0f} tokens/s", "of the teacher"))
    yield Figures("The teacher's logits", "what the student learns from in place of its teacher", rows)


def _warnings(run: RunData) -> Iterator[str]:
    for student in run.students:
        result = _of(student)
        if result is not None and result.mass_kept < LITTLE:
            yield (
                f"{student.name}: it learnt from its teacher's {result.top_k:,} likeliest tokens, which have "
                f"{100 * result.mass_kept:.1f} % of its probability; a larger distill.cachedTopK keeps more."
            )


def _of(student: StudentData) -> LogitsResult | None:
    result = student.results.get(Phase.LOGITS)
    return result if isinstance(result, LogitsResult) else None


REPORT = PhaseReport(panels=_panels, warnings=_warnings)
