"""What stands beside a student's weights: its card and its report."""

from pathlib import Path

from compression_pipeline.config import JobConfig, Phase
from compression_pipeline.context import Context
from compression_pipeline.huggingface.terms import CARD
from compression_pipeline.phases.drawing import try_to_draw
from compression_pipeline.report import PAGE
from compression_pipeline.report.ancestry import Ancestry
from compression_pipeline.report.card import model_card
from compression_pipeline.report.data import Exported

REPORT = "report"
"""Folder of the report, beside the checkpoint's."""

PROVED = "the checkpoint is whole and proved"
"""What a warning of something else ends with."""


def describe_student(
    ancestry: Ancestry, phase: Phase, job: JobConfig, exported: Exported, folder: Path, context: Context
) -> None:
    """Write `model/README.md` and `report/index.html` into the folder of the artifact that `job`, of this phase, makes.

    A report that can't be drawn costs a warning.
    """

    def write() -> None:
        from compression_pipeline.report.write import write_student_report

        write_student_report(ancestry, phase, job, exported, folder / REPORT)

    drawn = try_to_draw("the report", write, folder / REPORT, context, safe=PROVED)
    card = model_card(ancestry, exported, report=f"../{REPORT}/{PAGE}" if drawn else None)
    (folder / "model" / CARD).write_text(card, encoding="utf-8")
