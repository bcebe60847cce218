"""Where teachers and text come from: one file per kind of source, found by the source's prefix."""

from collections.abc import Callable
from pathlib import Path

from compression_pipeline.config import PrepareJob
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError

from . import hub, local
from .base import Place, Source, SourceFile, Splits, Unanswered

__all__ = ["SOURCES", "Source", "SourceFile", "Splits", "Unanswered", "open_source"]

SOURCES: dict[str, Callable[[Place], Source]] = {
    "file:": local.LocalSource,
    "pvc://": local.LocalSource,
    "hf://": hub.HubSource,
}


def open_source(source: str, *, field: str, revision: str | None, job: PrepareJob, context: Context) -> Source:
    """The source that a field of the manifest names. Raises UserError where its kind is unknown."""
    for prefix, kind in SOURCES.items():
        if source.startswith(prefix):
            place = Place(source, field, revision, job.source_roots, Path(job.store), context, job.aside)
            return kind(place)
    raise UserError(f"{field}: {source} should start with one of {', '.join(SOURCES)}")
