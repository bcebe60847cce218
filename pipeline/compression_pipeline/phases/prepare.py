"""prepare: fetch the teacher, look at it, tokenize the text.

The artifact: `model/` (the teacher; its config.json is written anew, in one spelling, and its tokenizer and its
generation_config.json are such that plain transformers uses them), `data/train.bin/.idx`, `data/validation.bin/.idx`,
`data/statistics.json`. Its key comes from the content of all files that go in, so the same
content makes the same artifact on whatever disk it lies. The Hub tells another digest of small files: a repository and
a local copy of it make two artifacts.
"""

import json
from collections.abc import Sequence
from contextlib import suppress

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
from compression_pipeline.text import documents
from compression_pipeline.text.files import TextFile, kind
from compression_pipeline.text.statistics import describe
from compression_pipeline.text.tokenize import TRAIN, VALIDATION, Tokenization

from .teacher import Teacher


def run(job: PrepareJob, context: Context) -> PrepareResult:
    """Make the artifact, or find that there is one of the same content. Raises PhaseError."""
    teacher = open_source(
        job.teacher.model, field="spec.teacher.model", revision=job.teacher.revision, job=job, context=context
    )
    dataset = open_source(
        job.dataset.source, field="spec.dataset.source", revision=job.dataset.revision, job=job, context=context
    )
    context.events.info(f"looks at {job.teacher.model} and {job.dataset.source}")
    try:
        model_files = teacher.model_files()
        splits = dataset.text_files(job.dataset)
    except Unanswered as error:
        known = _known(job, context, (teacher, dataset))
        if known is None:
            raise
        commits = [found.revision for found in (known.resolved_teacher, known.resolved_dataset) if found.revision]
        context.events.warning(f"{error}; goes on with what it was when last asked (commit {', '.join(commits)})")
        return known
    return _take(job, context, (teacher, model_files), (dataset, splits))


def _take(
    job: PrepareJob, context: Context, model: tuple[Source, Sequence[SourceFile]], text: tuple[Source, Splits]
) -> PrepareResult:
    """What is made of these files, which may be there by now."""
    teacher, model_files = model
    dataset, splits = text
    job = _with_documents(job, dataset, splits)
    splits = _in_order(splits, job.dataset)
    resolved = {
        "teacher": ResolvedSource(
            source=job.teacher.model, revision=teacher.revision, digest=_digest_of_model(model_files)
        ),
        "dataset": ResolvedSource(source=job.dataset.source, revision=dataset.revision, digest=_digest_of_text(splits)),
    }
    found_of = {role: source.digest for role, source in resolved.items()}
    own = None if job.cache is Cache.STORE else job.fingerprint
    key = content_key(job.dataset, splits, teacher=found_of["teacher"], text=found_of["dataset"], own=own)
    artifact = context.sound(context.store.find(f"prepare-{key}"))
    cached = artifact is not None
    if artifact is None:
        artifact = _make(job, context, key, resolved, (teacher, model_files), (dataset, splits))
    found = context.store.use(artifact).result(PrepareResult)
    _check_length(found, job.dataset)
    # The same content may have come from elsewhere the first time.
    told = {"resolved_teacher": resolved["teacher"], "resolved_dataset": resolved["dataset"]}
    found = found.model_copy(update={**told, "cached": cached})
    sources = (teacher, dataset)
    published = Published(
        artifact=artifact.name,
        watched=[watched for source in sources if (watched := source.watched())],
        asked=[asked for source in sources if (asked := source.asked())],
        result={name: value for name, value in found.to_json().items() if name.startswith("resolved")},
    )
    context.store.record_published(job.fingerprint, published)
    return found


def _known(job: PrepareJob, context: Context, sources: tuple[Source, Source]) -> PrepareResult | None:
    """What the step found when it was made last, where nothing but a branch or a tag can have moved since.

    None, too, where one of the sources has told that its own has moved.
    """
    record = context.store.published(job.fingerprint)
    there = context.store.recorded(record) if record is not None and record.may_stand else None
    artifact = context.sound(there)
    if record is None or artifact is None:
        return None
    found = context.store.use(artifact).result(PrepareResult)
    then = {found.resolved_teacher.revision, found.resolved_dataset.revision, *(one.commit for one in record.asked)}
    if not {source.revision for source in sources} <= {None, *then}:
        return None
    _check_length(found, job.dataset)
    return found.model_copy(update={"cached": True})


def _with_documents(job: PrepareJob, dataset: Source, splits: Splits) -> PrepareJob:
    """The job with what Auto means for its text, which is part of what is made of it."""
    if job.dataset.documents is not DocumentFormat.AUTO:
        return job
    form = DocumentFormat.ROWS
    # What a download of another name begins with is not worth having it before there is known to be room for it.
    if not scheme_of(job.dataset.source).downloads or "wikitext" in job.dataset.source.rpartition("/")[2].lower():
        [first] = _fetch_text(splits.train[:1], dataset, job.dataset.text_column)
        with suppress(UserError):  # told where it is read to be tokenized
            form = documents.detect(first.first_lines())
    return job.model_copy(update={"dataset": job.dataset.model_copy(update={"documents": form})})


def content_key(dataset: DatasetConfig, splits: Splits, *, teacher: str, text: str, own: str | None = None) -> str:
    """Key of the artifact: digests of the teacher's and the text's files, and how documents are made of the latter.

    What was never used makes no difference: where the files came from, what chose them, and how documents would have
    been held out where a split is there for that. `dataset` says what its documents are, not Auto. `own`: the step's
    fingerprint, where its artifact is to have a name that those of others don't get.
    """
    unused = {"source", "config", "revision", "trainSplit", "validationSplit"}
    if splits.validation:
        unused |= {"seed", "validationFraction"}
    if all(kind(file.name) == "text" for file in (*splits.train, *splits.validation)):
        unused.add("textColumn")
    fields = {name: value for name, value in semantic_fields(dataset).items() if name not in unused}
    fields["documents"] = dataset.documents.value
    content = {"version": SCHEMA_VERSION, "phase": "prepare", "dataset": fields, "teacher": teacher, "text": text}
    return digest(content | ({"own": own} if own else {}))


def _check_length(found: PrepareResult, dataset: DatasetConfig) -> None:
    """Say now, and not on a GPU, that there is less text than one sequence; the artifact serves shorter ones."""
    _check_positions(found.teacher, dataset)
    tokens = {"train_tokens": found.train_tokens, "validation_tokens": found.validation_tokens}
    fault = text_fault(dataset, **tokens, trainings={})  # the operator knows the trainings, and asks before they run
    if fault:
        raise UserError(f"spec.{fault}")


def _check_positions(teacher: Architecture, dataset: DatasetConfig) -> None:
    fault = sequence_fault(teacher, dataset.sequence_length)
    if fault:
        raise UserError(f"spec.{fault}")


def _in_order(splits: Splits, dataset: DatasetConfig) -> Splits:
    """The files in an order that their names don't tell, unless one goes on where another ends."""
    if dataset.documents is not DocumentFormat.ROWS:
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
    resolved: dict[str, ResolvedSource],
    model: tuple[Source, Sequence[SourceFile]],
    text: tuple[Source, Splits],
) -> Artifact:
    teacher, model_files = model
    dataset, splits = text
    text_files = [*splits.train, *splits.validation]
    space.require(
        context.store,
        teacher.missing_bytes(model_files)
        + dataset.missing_bytes(text_files)
        + sum(file.size for file in model_files if not teacher.private)  # is copied
        + sum(file.size for file in text_files),  # tokens take about as many bytes as their text
        f"preparing {job.teacher.model} and {job.dataset.source}",
    )
    with context.store.draft("prepare", key) as draft:
        taken = Teacher(teacher, model_files, job.teacher.model, draft, context)
        architecture, encoding = taken.architecture, taken.tokenizer
        _check_positions(architecture, job.dataset)  # before all the text is tokenized
        train = _fetch_text(splits.train, dataset, job.dataset.text_column)
        validation = _fetch_text(splits.validation, dataset, job.dataset.text_column)
        taken.copy_weights()
        data = draft.path / "data"
        data.mkdir()
        tokenized = Tokenization(job.dataset, context, encoding, data).run(train, validation)
        for writer in tokenized.writers.values():
            for path, sha256 in writer.digests.items():
                draft.hashed(path, sha256)
        statistics = describe(
            tokenized.writers, end_of_document=encoding.end_of_document, vocabulary=encoding.vocabulary
        )
        (data / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
        _check_unchanged(teacher, model_files)
        _check_unchanged(dataset, text_files)
        result = PrepareResult(
            key=key,
            teacher=architecture,
            teacher_parameters=architecture.parameters,
            resolved_teacher=resolved["teacher"],
            resolved_dataset=resolved["dataset"],
            documents=tokenized.documents,
            train_tokens=tokenized.writers[TRAIN].tokens,
            validation_tokens=tokenized.writers[VALIDATION].tokens,
        )
        return draft.publish(
            config=job.to_json(),
            inputs={role: f"{found.source}@{found.revision or found.digest}" for role, found in resolved.items()},
            result=result.to_json(),
            metrics={"tokensPerSecond": tokenized.tokens / max(tokenized.seconds, 1e-9), **statistics},
        )


def _fetch_text(files: Sequence[SourceFile], dataset: Source, column: str) -> list[TextFile]:
    paths = dataset.fetch(files)
    return [
        TextFile(path, name=dataset.name_of(file), column=column, open=dataset.open)
        for file, path in zip(files, paths, strict=True)
    ]


def _check_unchanged(source: Source, files: Sequence[SourceFile]) -> None:
    watched = source.watched()
    changed = watched.changed([file.name for file in files]) if watched else None
    if watched is not None and changed is not None:
        raise TransientError(f"{watched.folder / changed} changed while it was read; try again")
