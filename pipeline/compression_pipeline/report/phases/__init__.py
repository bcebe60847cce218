"""What each phase adds to the report and to the card: one file a phase, one entry in `REPORTS`.

A phase without an entry is there too, with the figures of its result.
"""

from collections.abc import Mapping

from compression_pipeline.config import Phase
from compression_pipeline.report.data import Measured, Results

from . import distill, evaluate, export, finetune, logits, prepare, prune, search
from .base import PhaseReport, Row, plain

REPORTS: Mapping[Phase, PhaseReport] = {
    Phase.PREPARE: prepare.REPORT,
    Phase.FINETUNE: finetune.REPORT,
    Phase.SEARCH: search.REPORT,
    Phase.PRUNE: prune.REPORT,
    Phase.LOGITS: logits.REPORT,
    Phase.DISTILL: distill.REPORT,
    Phase.TASKS: evaluate.TOLD_WITH_THE_STUDENT,
    Phase.EXPORT: export.REPORT,
    Phase.BASELINE: evaluate.TOLD_WITH_THE_STUDENT,
    Phase.BASELINE_CORRECTED: evaluate.TOLD_WITH_THE_STUDENT,
    Phase.EVALUATE: evaluate.REPORT,
    Phase.REPORT: evaluate.TOLD_WITH_THE_STUDENT,
}


def all_phases() -> list[PhaseReport]:
    """Of every phase, in their order."""
    return [REPORTS.get(phase) or plain(phase) for phase in Phase]


def measured(results: Results) -> Measured:
    """The validation losses that these phases tell, later ones first."""
    found = Measured()
    for phase in (phase for phase in Phase if phase in results and phase in REPORTS):
        found = REPORTS[phase].losses(results[phase]).over(found)
    return found


__all__ = ["REPORTS", "PhaseReport", "Row", "all_phases", "measured"]
