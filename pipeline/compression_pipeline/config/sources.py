"""Where the teacher and the text come from."""

import re
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from .base import ConfigModel, Operational, Rule

SOURCE_PATTERN = (
    r"^(hf://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?|file:.+|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/.+)$"
)
"""`hf://owner/name`, `file:path` (local runs only, relative to the manifest) or `pvc://claim/path` (clusters only)."""


def _is_a_source(path: str) -> Rule:
    """The field `path` is a source; a rule, not a pattern, so that the API server answers with a sentence."""
    form = re.compile(SOURCE_PATTERN.removeprefix("^").removesuffix("$"))
    return Rule.of(
        path,
        "should be hf://owner/name, pvc://claim/path (on a cluster) or file:path (local runs)",
        lambda model: form.fullmatch(getattr(model, path)) is not None,
        f"self.{path}.matches('{SOURCE_PATTERN}')",
    )


def _hub_only(path: str, source: str) -> Rule:
    """The field `path` makes sense only where the field `source` of the same object is on the Hub."""

    def holds(model: ConfigModel) -> bool:
        return getattr(model, path) is None or getattr(model, source).startswith("hf://")

    return Rule.of(
        path, "is for hf:// sources only; remove it", holds, f"!has(self.{path}) || self.{source}.startsWith('hf://')"
    )


def _stays_in_the_volume(path: str) -> Rule:
    """A `pvc://claim/path` never leaves its claim."""

    def holds(model: ConfigModel) -> bool:
        source: str = getattr(model, path)
        return not source.startswith("pvc://") or ".." not in source.split("/")

    return Rule.of(
        path,
        "leaves the volume; remove .. from the path",
        holds,
        f"!self.{path}.matches('^pvc://(.*/)?[.][.](/.*)?$')",
    )


class DocumentFormat(StrEnum):
    """How the rows of a source become documents."""

    AUTO = "Auto"  # WikiTextArticles for text that begins as WikiText does, Rows otherwise
    ROWS = "Rows"
    WIKITEXT_ARTICLES = "WikiTextArticles"  # lines joined into articles at level-1 headings


class TeacherConfig(ConfigModel):
    """The model to compress."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _is_a_source("model"),
        _hub_only("revision", "model"),
        _stays_in_the_volume("model"),
    )

    model: str = Field(
        min_length=1,
        max_length=1024,
        description="Hugging Face checkpoint to compress: hf://owner/name, pvc://claim/path on a cluster, or "
        "file:path (relative to the manifest) for local runs. Safetensors only; code from the Hub is never run.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Branch, tag or commit on the Hub. Prepare resolves it to a commit and records that.",
    )


class DatasetConfig(ConfigModel):
    """The text that the teacher is corrected on and the students learn from."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _is_a_source("source"),
        _hub_only("revision", "source"),
        _stays_in_the_volume("source"),
        Rule.of(
            "validationSplit",
            "is the training split; validation would measure what was trained on",
            lambda dataset: dataset.validation_split != dataset.train_split,
            "!has(self.validationSplit) || self.validationSplit != self.trainSplit",
        ),
    )

    source: str = Field(
        min_length=1,
        max_length=1024,
        description="Where the text is: hf://owner/name, pvc://claim/path or file:path. A file, a folder or a glob of "
        ".txt (one document a file), .jsonl, .json (JSON Lines, too) or .parquet; .gz and .zst of those but the last. "
        "Files belong to splits as Hugging Face's datasets reads them: by configs in the header of the folder's "
        "README.md where it has such, else by their names.",
    )
    config: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Configuration (subset) of a dataset, e.g. wikitext-103-v1: one of those in its README.md, or one "
        "that the Hub knows of.",
    )
    revision: str | None = Field(
        default=None, min_length=1, max_length=256, description="Branch, tag or commit on the Hub."
    )
    text_column: str = Field(default="text", min_length=1, max_length=256, description="Column that holds the text.")
    train_split: str = Field(default="train", min_length=1, max_length=256, description="Split to train on.")
    validation_split: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Split to validate on. Default: the split named validation where the source has one; otherwise "
        "validationFraction of the training documents is held out.",
    )
    validation_fraction: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Share of the training documents held out for validation where the source has no such split.",
    )
    documents: DocumentFormat = Field(
        default=DocumentFormat.AUTO,
        description="How rows become documents. Rows: one document a row. WikiTextArticles: lines are joined into "
        "articles at level-1 headings. Auto: WikiTextArticles where the text begins as WikiText does (lines after a "
        "space, ' = Title = ' first) and, on the Hub, the repository's name contains wikitext; else Rows.",
    )
    # Tokenized text is the same for every length; the phases that train take it into their own fingerprints.
    sequence_length: Annotated[int, Operational()] = Field(
        default=8192, ge=8, le=1_048_576, description="Tokens in one training sequence (context length)."
    )
    seed: int = Field(default=1234, ge=0, le=2**31 - 1, description="Seed of the choice of held-out documents.")
    workers: Annotated[int | None, Operational()] = Field(
        default=None, ge=1, le=1024, description="Processes that tokenize. Default: the processors of the pod."
    )
