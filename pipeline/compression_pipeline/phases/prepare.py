"""prepare: fetch the teacher, look at it, tokenize the text.

The artifact: `model/` (the teacher; its config.json is written anew, in one spelling, and its tokenizer and its
generation_config.json are such that plain transformers uses them), `data/train.bin/.idx`, `data/validation.bin/.idx`,
`data/statistics.json`, and with `promptColumn` a `.mask` of each split; of several sources each has its two splits in a
folder of its own, `data/0/`, `data/1/` ..., and `data/mixture.json` lists them. Its key comes from the content of all
files that go in, so the same content makes the same artifact on whatever disk it lies. The Hub tells another digest of
small files: a repository and a local copy of it make two artifacts.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from compression_pipeline import space
from compression_pipeline.artifact import Artifact
from compression_pipeline.config import (
    Architecture,
    Cache,
    DatasetConfig,
    DocumentFormat,
    PrepareJob,
    PrepareResult,
    ResolvedSource,
    ResolvedText,
    TextConfig,
    WeightedSource,
    digest,
    semantic_fields,
    sequence_fault,
    text_fault,
)
from compression_pipeline.config.fingerprint import SCHEMA_VERSION
from compression_pipeline.config.schemes import scheme_of
from compression_pipeline.context import Context
from compression_pipeline.errors import TransientError, UserError
from compression_pipeline.sources import Source, SourceFile, Splits, Unanswered, checkpoint, open_source
from compression_pipeline.store.published import Published
from compression_pipeline.text import documents, mixture
from compression_pipeline.text.files import TextFile, kind
from compression_pipeline.text.indexed import MOST_BYTES
from compression_pipeline.text.statistics import describe
from compression_pipeline.text.tokenize import TRAIN, VALIDATION, Tokenization, Tokenized

from .teacher import Teacher


@dataclass(frozen=True)
class Text:
    """One source of text."""

    told: WeightedSource
    """Its block of the manifest; by now it says what its documents are, not Auto."""
    field: str
    """Of that block."""
    source: Source
    splits: Splits


def run(job: PrepareJob, context: Context) -> PrepareResult:
    """Make the artifact, or find that there is one of the same content. Raises PhaseError."""
    teacher = open_source(
        job.teacher.model, field="spec.teacher.model", revision=job.teacher.revision, job=job, context=context
    )
    told = job.dataset.texts
    fields = [job.dataset.field_of(number) for number in range(len(told))]
    datasets = [
        open_source(one.source, field=f"spec.{field}.source", revision=one.revision, job=job, context=context)
        for one, field in zip(told, fields, strict=True)
    ]
    context.events.info(f"looks at {job.teacher.model} and {', '.join(one.source for one in told)}")
    texts: list[Text] = []
    try:
        model_files = teacher.model_files()
        for one, field, dataset in zip(told, fields, datasets, strict=True):
            with _saying(field):
                texts.append(Text(one, field, dataset, dataset.text_files(one)))
                _check_columns(texts[-1])
    except Unanswered as error:
        known = _known(job, context, (teacher, *datasets))
        if known is None:
            raise
        commits = [found.revision for found in (known.resolved_teacher, *known.resolved_texts) if found.revision]
        context.events.warning(f"{error}; goes on with what it was when last asked (commit {', '.join(commits)})")
        return known
    return _take(job, context, (teacher, model_files), texts)


def _check_columns(text: Text) -> None:
    """Raises UserError where a prompt is to be read out of a file without columns."""
    for file in (*text.splits.train, *text.splits.validation):
        if text.told.prompt_column is not None and kind(file.name) == "text":
            raise UserError(
                f"spec.dataset.promptColumn: {file.name} is a text file, which has no columns; give JSON Lines or "
                "Parquet, or remove promptColumn"
            )


@contextmanager
def _saying(field: str) -> Iterator[None]:
    """Have what is wrong with one of several sources name the fields of that one."""
    try:
        yield
    except UserError as error:
        if field != "dataset":
            own = "|".join(one.alias or "" for one in TextConfig.model_fields.values())
            error.args = tuple(re.sub(rf"\bdataset\.({own}|source)\b", rf"{field}.\1", str(one)) for one in error.args)
        raise


def _take(
    job: PrepareJob, context: Context, model: tuple[Source, Sequence[SourceFile]], texts: Sequence[Text]
) -> PrepareResult:
    """What is made of these files, which may be there by now."""
    teacher, model_files = model
    texts = [_settled(text) for text in texts]
    resolved = ResolvedSource(source=job.teacher.model, revision=teacher.revision, digest=_digest_of_model(model_files))
    own = None if job.cache is Cache.STORE else job.fingerprint
    key = content_key(job.dataset, texts, teacher=resolved.digest, own=own)
    artifact = context.sound(context.store.find(f"prepare-{key}"))
    cached = artifact is not None
    if artifact is None:
        artifact = _make(job, context, key, resolved, (teacher, model_files), texts)
    found = context.store.use(artifact).result(PrepareResult)
    _check_length(found, job.dataset)
    # The same content may have come from elsewhere the first time.
    sources = [(one.train_tokens, one.validation_tokens, one.learned_tokens) for one in found.resolved_sources]
    told = {"resolved_teacher": resolved, **_resolved(job.dataset, texts, sources)}
    found = found.model_copy(update={**told, "cached": cached})
    places = (teacher, *(text.source for text in texts))
    published = Published(
        artifact=artifact.name,
        watched=[watched for place in places if (watched := place.watched())],
        asked=[asked for place in places if (asked := place.asked())],
        result={name: value for name, value in found.to_json().items() if name.startswith("resolved")},
    )
    context.store.record_published(job.fingerprint, published)
    return found


def _resolved(
    dataset: DatasetConfig, texts: Sequence[Text], tokens: Sequence[tuple[int, int, int | None]]
) -> dict[str, Any]:
    """What a result says of the sources of text. `tokens`: of each one's two splits, and those of training that are
    learned, where there are several sources.
    """
    found = [
        {
            "source": text.told.source,
            "revision": text.source.revision,
            "digest": _digest_of_text(text.splits),
        }
        for text in texts
    ]
    if not dataset.sources:
        return {"resolved_dataset": ResolvedSource.model_validate(found[0]), "resolved_sources": []}
    several = [
        ResolvedText(
            **one, weight=text.told.weight, train_tokens=train, validation_tokens=validation, learned_tokens=learned
        )
        for one, text, (train, validation, learned) in zip(found, texts, tokens, strict=True)
    ]
    return {"resolved_dataset": None, "resolved_sources": several}


def _known(job: PrepareJob, context: Context, sources: Sequence[Source]) -> PrepareResult | None:
    """What the step found when it was made last, where nothing but a branch or a tag can have moved since.

    None, too, where one of the sources has told that its own has moved.
    """
    record = context.store.published(job.fingerprint)
    there = context.store.recorded(record) if record is not None and record.may_stand else None
    artifact = context.sound(there)
    if record is None or artifact is None:
        return None
    found = context.store.use(artifact).result(PrepareResult)
    told = (found.resolved_teacher, *found.resolved_texts)
    then = {*(one.revision for one in told), *(one.commit for one in record.asked)}
    if not {source.revision for source in sources} <= {None, *then}:
        return None
    _check_length(found, job.dataset)
    return found.model_copy(update={"cached": True})


def _settled(text: Text) -> Text:
    """The text with what Auto means for it, which is part of what is made of it, and its files in their order."""
    told = text.told
    if told.documents is DocumentFormat.AUTO and told.prompt_column is not None:
        told = told.model_copy(update={"documents": DocumentFormat.ROWS})
    if told.documents is DocumentFormat.AUTO:
        form = DocumentFormat.ROWS
        # What a download of another name begins with is not worth having it before there is known to be room for it.
        if not scheme_of(told.source).downloads or "wikitext" in told.source.rpartition("/")[2].lower():
            [first] = _fetch_text(text.splits.train[:1], text)
            with suppress(UserError):  # told where it is read to be tokenized
                form = documents.detect(first.first_lines())
        told = told.model_copy(update={"documents": form})
    return replace(text, told=told, splits=_in_order(text.splits, told))


def content_key(dataset: DatasetConfig, texts: Sequence[Text], *, teacher: str, own: str | None = None) -> str:
    """Key of the artifact: digests of the teacher's and the texts' files, and how documents are made of the latter.

    What was never used makes no difference: where the files came from, what chose them, and how documents would have
    been held out where a split is there for that. `own`: the step's fingerprint, where its artifact is to have a name
    that those of others don't get.
    """
    split = all(text.splits.validation for text in texts)
    unused = DatasetConfig.of_texts() | ({"seed"} if split else set())
    fields = {name: value for name, value in semantic_fields(dataset).items() if name not in unused}
    digests = [_digest_of_text(text.splits) for text in texts]
    if dataset.sources:
        fields["sources"] = [{**_used(text), "weight": text.told.weight} for text in texts]
    else:
        fields |= _used(texts[0])
    content = {
        "version": SCHEMA_VERSION,
        "phase": "prepare",
        "dataset": fields,
        "teacher": teacher,
        "text": digests if dataset.sources else digests[0],
    }
    return digest(content | ({"own": own} if own else {}))


def _used(text: Text) -> dict[str, Any]:
    """What of a source's block makes a difference, but its weight."""
    unused = {"source", "weight", "config", "revision", "trainSplit", "validationSplit"}
    if text.splits.validation:
        unused.add("validationFraction")
    if all(kind(file.name) == "text" for file in (*text.splits.train, *text.splits.validation)):
        unused.add("textColumn")
    fields = {name: value for name, value in semantic_fields(text.told).items() if name not in unused}
    return {**fields, "documents": text.told.documents.value}


def _check_length(found: PrepareResult, dataset: DatasetConfig) -> None:
    """Say now, and not on a GPU, that there is less text than one sequence; the artifact serves shorter ones."""
    _check_positions(found.teacher, dataset)
    tokens = {"train_tokens": found.train_tokens, "validation_tokens": found.validation_tokens}
    # The operator knows the trainings, and asks before they run.
    fault = text_fault(dataset, **tokens, trainings={}, sources=found.resolved_sources)
    if fault:
        raise UserError(f"spec.{fault}")


def _check_positions(teacher: Architecture, dataset: DatasetConfig) -> None:
    fault = sequence_fault(teacher, dataset.sequence_length)
    if fault:
        raise UserError(f"spec.{fault}")


def _in_order(splits: Splits, told: WeightedSource) -> Splits:
    """The files in an order that their names don't tell, unless one goes on where another ends."""
    if told.documents is not DocumentFormat.ROWS:
        return splits

    def by_content(files: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
        return tuple(sorted(files, key=lambda file: (file.digest, file.name)))

    return Splits(by_content(splits.train), by_content(splits.validation))


def _digest_of_model(files: Sequence[SourceFile]) -> str:
    return digest([[file.name, file.size, file.digest] for file in files if checkpoint.shapes(file.name)])


def _digest_of_text(splits: Splits) -> str:
    """By the formats of files, for their names are nothing that anybody learns from."""
    roles = {"train": splits.train, "validation": splits.validation}
    return digest(
        {role: [[kind(file.name), file.size, file.digest] for file in files] for role, files in roles.items()}
    )


def _make(
    job: PrepareJob,
    context: Context,
    key: str,
    resolved: ResolvedSource,
    model: tuple[Source, Sequence[SourceFile]],
    texts: Sequence[Text],
) -> Artifact:
    teacher, model_files = model
    files = [(text.source, [*text.splits.train, *text.splits.validation]) for text in texts]
    space.require(
        context.store,
        teacher.missing_bytes(model_files)
        + sum(source.missing_bytes(text_files) for source, text_files in files)
        + sum(file.size for file in model_files if not teacher.private)  # is copied
        + sum(_bytes_of_tokens(text, job.dataset.budget_of(text.told)) for text in texts),
        f"preparing {job.teacher.model} and {', '.join(text.told.source for text in texts)}",
    )
    with context.store.draft("prepare", key) as draft:
        taken = Teacher(teacher, model_files, job.teacher.model, draft, context)
        architecture, encoding = taken.architecture, taken.tokenizer
        _check_positions(architecture, job.dataset)  # before all the text is tokenized
        opened = [(_fetch_text(text.splits.train, text), _fetch_text(text.splits.validation, text)) for text in texts]
        taken.copy_weights()
        data = draft.path / "data"
        folders = [data / str(number) for number in range(len(texts))] if job.dataset.sources else [data]
        tokenized: list[Tokenized] = []
        for text, (train, validation), folder in zip(texts, opened, folders, strict=True):
            folder.mkdir(parents=True)
            with _saying(text.field):
                made = Tokenization(job.dataset, context, encoding, folder, text=text.told).run(train, validation)
            for writer in made.writers.values():
                for path, sha256 in writer.digests.items():
                    draft.hashed(path, sha256)
            tokenized.append(made)
        sizes = {"end_of_document": encoding.end_of_document, "vocabulary": encoding.vocabulary}
        found = [describe(made.writers, **sizes) for made in tokenized]
        statistics = found[0]
        if job.dataset.sources:
            mixture.write(
                data, [mixture.Part(folder, text.told.weight) for folder, text in zip(folders, texts, strict=True)]
            )
            statistics = {"sources": found}
        (data / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
        _check_unchanged(teacher, model_files)
        for source, text_files in files:
            _check_unchanged(source, text_files)
        trained = [made.writers[TRAIN] for made in tokenized]
        tokens = [
            (train.tokens, made.writers[VALIDATION].tokens, train.learned if train.masked else None)
            for train, made in zip(trained, tokenized, strict=True)
        ]
        result = PrepareResult(
            key=key,
            teacher=architecture,
            teacher_parameters=architecture.parameters,
            resolved_teacher=resolved,
            **_resolved(job.dataset, texts, tokens),
            documents=sum(made.documents for made in tokenized),
            train_tokens=sum(train.tokens for train in trained),
            validation_tokens=sum(validation for _, validation, _ in tokens),
            learned_tokens=sum(train.learned for train in trained) if any(train.masked for train in trained) else None,
        )
        inputs = {"teacher": resolved, **dict(_roles(result))}
        seconds = sum(made.seconds for made in tokenized)
        return draft.publish(
            config=job.model_copy(update={"dataset": _as_settled(job.dataset, texts)}).to_json(),
            inputs={role: f"{one.source}@{one.revision or one.digest}" for role, one in inputs.items()},
            result=result.to_json(),
            metrics={
                "tokensPerSecond": sum(made.tokens for made in tokenized) / max(seconds, 1e-9),
                **statistics,
            },
        )


def _bytes_of_tokens(text: Text, budget: int | None) -> int:
    """About as many as its text has, but for the training tokens (`budget`) no more than they take."""
    train, validation = (sum(file.size for file in files) for files in (text.splits.train, text.splits.validation))
    token = MOST_BYTES + (text.told.prompt_column is not None)
    if budget is not None:
        held_out = 0 if text.splits.validation else text.told.validation_fraction
        train = min(train, round(budget * token / (1 - held_out)))
    return train + validation


def _roles(result: PrepareResult) -> Iterator[tuple[str, ResolvedSource]]:
    """Each source of text by its role among the artifact's inputs."""
    for number, one in enumerate(result.resolved_texts):
        yield ("dataset" if result.resolved_dataset else f"dataset-{number}"), one


def _as_settled(dataset: DatasetConfig, texts: Sequence[Text]) -> DatasetConfig:
    """The block of the manifest, saying what documents are in each source."""
    if dataset.sources:
        return dataset.model_copy(update={"sources": [text.told for text in texts]})
    return dataset.model_copy(update={"documents": texts[0].told.documents})


def _fetch_text(files: Sequence[SourceFile], text: Text) -> list[TextFile]:
    paths = text.source.fetch(files)
    return [
        TextFile(
            path,
            name=text.source.name_of(file),
            column=text.told.text_column,
            prompt=text.told.prompt_column,
            open=text.source.open,
        )
        for file, path in zip(files, paths, strict=True)
    ]


def _check_unchanged(source: Source, files: Sequence[SourceFile]) -> None:
    watched = source.watched()
    changed = watched.changed([file.name for file in files]) if watched else None
    if watched is not None and changed is not None:
        raise TransientError(f"{watched.folder / changed} changed while it was read; try again")
