"""export: what the student writes. Its other figures are the student's own, in the verdict and the table of models."""

from .base import PhaseReport

REPORT = PhaseReport(section="samples.html.j2")
