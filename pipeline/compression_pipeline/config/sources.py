"""Where the teacher and the text come from."""

import json
import re
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from .base import ConfigModel, Operational, Rule, cel_format
from .schemes import SCHEMES, Role, forms, forms_with_notes, in_words, scheme_of, source_pattern


def _source_rules(path: str, role: Role, *, optional: bool = False) -> tuple[Rule, ...]:
    """The rules of a source in the field `path`, and of the field `revision` beside it."""
    revisions = _has_revisions("revision", path)
    return (*source_rules(path, role, optional=optional), _if_set(path, revisions) if optional else revisions)


def source_rules(path: str, role: Role, *, optional: bool = False) -> tuple[Rule, ...]:
    """The rules of a source in the field `path`. `optional`: it need not be set."""
    own = (rule for scheme in SCHEMES.values() if role in scheme.roles for rule in scheme.rules(path))
    rules = (_is_a_source(path, role), *own)
    return tuple(_if_set(path, rule) for rule in rules) if optional else rules


def _if_set(path: str, rule: Rule) -> Rule:
    """The rule, for an object that has the field."""

    def check(model: ConfigModel) -> str | None:
        return None if getattr(model, path) is None else rule.check(model)

    return replace(rule, check=check, cel=f"!has(self.{path}) || ({rule.cel})")


def _is_a_source(path: str, role: Role) -> Rule:
    """The field `path` is a source; a rule, not a pattern, so that the API server answers with a sentence."""

    def check(model: ConfigModel) -> str | None:
        form = source_pattern(role).removeprefix("^").removesuffix("$")
        return None if re.fullmatch(form, getattr(model, path)) else sentence()

    def sentence() -> str:
        return f"should be {forms(role, places=True)}"

    return Rule(path, check, f"self.{path}.matches('{source_pattern(role)}')", sentence=sentence())


def _has_revisions(path: str, source: str) -> Rule:
    """The field `path`, a revision, makes sense only where the field `source` of the same object has revisions."""

    def holds(model: ConfigModel) -> bool:
        return getattr(model, path) is None or scheme_of(getattr(model, source)).revisions

    prefixes = [scheme.prefix for scheme in SCHEMES.values() if scheme.revisions]
    begins = " || ".join(f"self.{source}.startsWith('{prefix}')" for prefix in prefixes)
    return Rule.of(
        path, f"is for {in_words(prefixes, ' and ')} sources only; remove it", holds, f"!has(self.{path}) || {begins}"
    )


class DocumentFormat(StrEnum):
    """How the rows of a source become documents."""

    AUTO = "Auto"  # WikiTextArticles for text that begins as WikiText does, Rows otherwise
    ROWS = "Rows"
    WIKITEXT_ARTICLES = "WikiTextArticles"  # lines joined into articles at level-1 headings


class DocumentAttention(StrEnum):
    """Whether documents that lie in one sequence see each other."""

    SHARED = "Shared"  # as Megatron's default
    ISOLATED = "Isolated"  # as its reset_attention_mask and reset_position_ids


PlannedAttention = Annotated[DocumentAttention, BeforeValidator(lambda name: name or DocumentAttention.SHARED)]
"""As a plan tells it to a job: None is the default, so that no key names it."""


class TeacherConfig(ConfigModel):
    """The model to compress."""

    rules: ClassVar[tuple[Rule, ...]] = _source_rules("model", "model")

    model: str = Field(
        min_length=1,
        max_length=1024,
        description=f"Hugging Face checkpoint to compress: {forms_with_notes('model')}. Only safetensors "
        "files are read, and code from the Hub is never run.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Branch, tag or commit on the Hub. Prepare resolves it to a commit and records the commit in "
        "status.resolved.",
    )


_SPLITS_DIFFER = Rule.of(
    "validationSplit",
    "is the training split; name a split that is not trained on",
    lambda text: text.validation_split != text.train_split,
    "!has(self.validationSplit) || self.validationSplit != self.trainSplit",
)


_PROMPTS = (
    Rule.of(
        "promptColumn",
        "is the column of the text; name the column that comes before it",
        lambda text: text.prompt_column != text.text_column,
        "!has(self.promptColumn) || self.promptColumn != self.textColumn",
    ),
    Rule.of(
        "promptColumn",
        "is for rows that are documents; remove it, or documents: WikiTextArticles",
        lambda text: (
            text.prompt_column in (None, text.text_column) or text.documents != DocumentFormat.WIKITEXT_ARTICLES
        ),
        "!has(self.promptColumn) || self.promptColumn == self.textColumn || self.documents != 'WikiTextArticles'",
    ),
)


class TextConfig(ConfigModel):
    """What is told of a source of text, beside where it is."""

    config: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Configuration (subset) of the dataset, e.g. wikitext-103-v1. It must be listed in the dataset's "
        "README.md or known to the Hub.",
    )
    revision: str | None = Field(
        default=None, min_length=1, max_length=256, description="Branch, tag or commit on the Hub."
    )
    text_column: str = Field(default="text", min_length=1, max_length=256, description="Column that holds the text.")
    prompt_column: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Column that holds what comes before the text and is not learned, e.g. prompt beside a textColumn "
        "of completion. Losses are means over the tokens of the text and of its end alone, in training and in "
        "validation. A row without text is left out. Default: every token is learned.",
    )
    train_split: str = Field(default="train", min_length=1, max_length=256, description="Split to train on.")
    validation_split: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Split to validate on. Default: the split named validation if there is one, otherwise a held-out "
        "share of the training documents (validationFraction).",
    )
    validation_fraction: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="Share of the training documents that is held out for validation if the source has no validation "
        "split.",
    )
    documents: DocumentFormat = Field(
        default=DocumentFormat.AUTO,
        description="How rows become documents. Rows: one document per row. WikiTextArticles: rows are lines, joined "
        "into one article per level-1 heading. Auto: WikiTextArticles if the text begins like WikiText (a line ' = "
        "Title = ', each line after a space) and, on the Hub, the repository's name contains wikitext; otherwise "
        "Rows.",
    )


class WeightedSource(TextConfig):
    """One of several sources of text."""

    rules: ClassVar[tuple[Rule, ...]] = (*_source_rules("source", "dataset"), _SPLITS_DIFFER, *_PROMPTS)

    source: str = Field(
        min_length=1, max_length=1024, description=f"Source of the text: {forms('dataset')}. As dataset.source."
    )
    weight: float = Field(
        gt=0,
        le=1,
        description="Share of the training sequences that are of this source. The weights of all sources sum to 1.",
    )


_WEIGHTS = "weights sum to %.6f, not 1; divide each by %.6f"
_CEL_SUM = "self.sources.map(one, one.weight).sum()"
_CEL_NONE = "!has(self.sources) || self.sources.size() == 0"
_CEL_TOLD = f"{_CEL_NONE} || self.sources.exists(one, one.weight <= 0.0 || one.weight > 1.0)"
_NEARLY_ONE = (0.999999, 1.000001)
_CEL_UNBOUNDED = (
    "!has(self.tokens) || self.tokens < 1 || self.sequenceLength < 8 || self.sequenceLength > 1048576"  # or told
)


def _weights_sum_to_one(dataset: "DatasetConfig") -> str | None:
    weights = [one.weight for one in dataset.sources]
    total, (least, most) = sum(weights, 0.0), _NEARLY_ONE
    return None if not weights or least < total < most else _WEIGHTS % (total, total)


def _shares_have_a_sequence(dataset: "DatasetConfig") -> bool:
    """As `budget_of` rounds them. Tokens that are too few for one source are told by a rule of their own."""
    tokens, length = dataset.tokens, dataset.sequence_length
    return tokens is None or tokens <= length or all(tokens * one.weight > length + 0.5 for one in dataset.sources)


_TWICE = "lists the same text twice, as sources[%d] and sources[%d]; remove one and give the other the weight of both"
_WHAT_TEXT = ("source", "config", "revision", "trainSplit", "textColumn", "promptColumn")
"""Fields of a source that say which text is trained on."""
_MOST_SOURCES = 8


def _each_text_once() -> Rule:
    """No two sources are one text, whose weight would be another than is told of either."""
    fields = {field.alias or name: name for name, field in WeightedSource.model_fields.items()}

    def same(a: str, b: str) -> str:
        compared = (
            f"{a}.{name} == {b}.{name}"
            if WeightedSource.model_fields[fields[name]].get_default() is not None or name == "source"
            else f"has({a}.{name}) == has({b}.{name}) && (!has({a}.{name}) || {a}.{name} == {b}.{name})"
            for name in _WHAT_TEXT
        )
        return " && ".join(compared)

    def check(dataset: "DatasetConfig") -> str | None:
        texts = [tuple(getattr(one, fields[name]) for name in _WHAT_TEXT) for one in dataset.sources]
        pairs = ((texts.index(text), number) for number, text in enumerate(texts) if texts.index(text) < number)
        first = next(pairs, None)
        return None if first is None else _TWICE % first

    numbers = str([*range(_MOST_SOURCES)])
    before = f"first < second && {same('self.sources[first]', 'self.sources[second]')}"
    second = f"{numbers}.filter(second, second < self.sources.size() && {numbers}.exists(first, {before}))[0]"
    first = f"[{second}].map(second, {numbers}.filter(first, {before})[0])[0]"
    return Rule(
        "sources",
        check,
        cel=f"{_CEL_NONE} || self.sources.all(a, self.sources.exists_one(b, {same('a', 'b')}))",
        message=cel_format(_TWICE, first, second),
    )


def _of_one_source() -> Rule:
    """Nothing that is told of one source stands beside several."""
    defaults = {field.alias or name: field.default for name, field in TextConfig.model_fields.items()}
    unset = [
        f"!has(self.{name})" if default is None else f"self.{name} == {json.dumps(default)}"
        for name, default in defaults.items()
    ]

    def holds(dataset: "DatasetConfig") -> bool:
        told = (getattr(dataset, name) == field.default for name, field in TextConfig.model_fields.items())
        return not dataset.sources or all(told)

    return Rule.of(
        "sources",
        f"leaves what is told of one source no meaning beside it; move {', '.join(defaults)} into the sources that "
        "they are for",
        holds,
        f"{_CEL_NONE} || ({' && '.join(unset)})",
    )


class DatasetConfig(TextConfig):
    """The text that the teacher is corrected on and the students learn from."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *_source_rules("source", "dataset", optional=True),
        _SPLITS_DIFFER,
        *_PROMPTS,
        Rule.of(
            "source",
            "is required, unless sources lists several",
            lambda dataset: dataset.source is not None or bool(dataset.sources),
            f"has(self.source) || !({_CEL_NONE})",
        ),
        Rule.of(
            "sources",
            "stands in place of source; remove one of the two",
            lambda dataset: dataset.source is None or not dataset.sources,
            f"!has(self.source) || {_CEL_NONE}",
        ),
        Rule(
            "sources",
            _weights_sum_to_one,
            cel=f"{_CEL_TOLD} || ({_CEL_SUM} > {_NEARLY_ONE[0]} && {_CEL_SUM} < {_NEARLY_ONE[1]})",
            message=cel_format(_WEIGHTS, _CEL_SUM, _CEL_SUM),
        ),
        _of_one_source(),
        _each_text_once(),
        Rule.of(
            "tokens",
            "must be above sequenceLength, because a sequence is trained with the token after it",
            lambda dataset: dataset.tokens is None or dataset.tokens > dataset.sequence_length,
            f"{_CEL_UNBOUNDED} || self.tokens > self.sequenceLength",
        ),
        Rule.of(
            "tokens",
            "leaves a source fewer tokens than one sequence takes: tokens times its weight is at most sequenceLength; "
            "raise tokens or that weight, or lower sequenceLength",
            _shares_have_a_sequence,
            f"{_CEL_UNBOUNDED} || {_CEL_TOLD} || self.tokens <= self.sequenceLength || "
            "self.sources.all(one, double(self.tokens) * one.weight > double(self.sequenceLength) + 0.5)",
        ),
    )

    source: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description=f"Source of the text: {forms('dataset')}. A file, a folder or a glob of .txt (one document per "
        "file), .jsonl, .json (also JSON Lines) or .parquet files; all but .parquet may end in .gz or .zst. Splits are "
        "assigned as by Hugging Face's datasets: by configs in the header of the folder's README.md if there are any, "
        "otherwise by file names.",
    )
    sources: list[WeightedSource] = Field(
        default=[],
        max_length=_MOST_SOURCES,
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
        description="Several sources in place of source. Training takes its sequences from each by weight, in an order "
        "that depends on the weights and the seed alone. A source that has less text than its share is repeated. The "
        "validation loss is the mean of the sources' losses by weight.",
    )
    # Tokenized text is the same for every length; the phases that train take it into their own fingerprints.
    sequence_length: Annotated[int, Operational()] = Field(
        default=8192, ge=8, le=1_048_576, description="Length of one training sequence (context length), in tokens."
    )
    document_attention: Annotated[DocumentAttention, Operational()] = Field(
        default=DocumentAttention.SHARED,
        description="Documents are laid end to end and cut into sequences. Shared: a token sees all that comes before "
        "it in its sequence, as by Megatron's default. Isolated: it sees its own document alone, and positions begin "
        "at 0 in each (Megatron's reset_attention_mask and reset_position_ids). It holds for teacher and students, in "
        "training, importance and validation; losses of the one are not to be compared with those of the other. "
        "Isolated is slower, and its mask takes sequenceLength squared numbers for each sequence of a pass, once for "
        "all layers.",
    )
    tokens: int | None = Field(
        default=None,
        ge=1,
        le=10**15,
        description="Tokens of training text to take at most: files are read in the order of their digests (those of "
        "WikiTextArticles in their own) until there are so many, and the last document is cut short. Files are "
        "downloaded whole. Of several sources each gives its weight's share. How long a training "
        "goes on is for steps to say; one that needs more tokens than were taken repeats them. Default: all text.",
    )
    seed: int = Field(default=1234, ge=0, le=2**31 - 1, description="Seed for choosing the held-out documents.")
    workers: Annotated[int | None, Operational()] = Field(
        default=None,
        ge=1,
        le=1024,
        description="Number of processes that tokenize. Default: the processors of the pod.",
    )

    @property
    def texts(self) -> tuple[WeightedSource, ...]:
        """All sources, also where there is one."""
        if self.source is None:
            return tuple(self.sources)
        told = {name: getattr(self, name) for name in TextConfig.model_fields}
        return (WeightedSource(source=self.source, weight=1, **told),)

    def budget_of(self, text: WeightedSource) -> int | None:
        """Tokens of training text to take of a source at most; None where all of it is taken."""
        return None if self.tokens is None else max(1, round(self.tokens * text.weight))

    def field_of(self, number: int) -> str:
        """The block of the manifest that tells of source `number`: dataset, or dataset.sources[1]."""
        return f"dataset.sources[{number}]" if self.sources else "dataset"

    @classmethod
    def of_texts(cls) -> frozenset[str]:
        """Its fields (camelCase) that tell of sources, one or several; the others hold for all of them."""
        return frozenset({"source", "sources", *(field.alias or "" for field in TextConfig.model_fields.values())})
