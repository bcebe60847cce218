"""Where teachers and text come from: what fetches each of `config.schemes.SCHEMES`, one file per kind of source."""

from importlib import import_module
from pathlib import Path

from compression_pipeline.config import SourcesJob
from compression_pipeline.config.schemes import SCHEMES, scheme_of
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError

from .base import Place, Source, SourceFile, Splits, Unanswered

__all__ = ["Place", "Source", "SourceFile", "Splits", "Unanswered", "open_source"]


def open_source(source: str, *, field: str, revision: str | None, job: SourcesJob, context: Context) -> Source:
    """The source that a field of the manifest names. Raises UserError where its kind is unknown."""
    module, _, name = scheme_of(source).implementation.partition(":")
    if not module:
        raise UserError(f"{field}: {source} should start with one of {', '.join(SCHEMES)}")
    place = Place(source, field, revision, job.source_roots, Path(job.store), context, job.aside)
    return getattr(import_module(module), name)(place)
