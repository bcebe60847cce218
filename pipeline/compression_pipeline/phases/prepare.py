"""prepare: fetch the teacher, look at it, tokenize the text.

The artifact: `model/` (the teacher as it came), `data/train.bin/.idx`, `data/validation.bin/.idx`,
`data/statistics.json`. Its key comes from the content of all files that go in, so the same content makes the same
artifact wherever it lies.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from compression_pipeline import space
from compression_pipeline.artifact import Artifact, Draft, Published, Watched
from compression_pipeline.config import (
    Architecture,
    DatasetConfig,
    PrepareJob,
    PrepareResult,
    ResolvedSource,
    digest,
    semantic_fields,
    sequence_fault,
    text_fault,
)
from compression_pipeline.config.fingerprint import SCHEMA_VERSION
from compression_pipeline.context import Context
from compression_pipeline.errors import TransientError, UserError
from compression_pipeline.huggingface.files import inspect
from compression_pipeline.sources import Source, SourceFile, Splits, open_source
from compression_pipeline.text import documents
from compression_pipeline.text.files import TextFile
from compression_pipeline.text.statistics import describe
from compression_pipeline.text.tokenize import TRAIN, VALIDATION, Tokenization
from compression_pipeline.text.tokenizer import load

_CHUNK = 8 * 1024**2


def run(job: PrepareJob, context: Context) -> PrepareResult:
    """Make the artifact, or find that there is one of the same content. Raises PhaseError."""
    teacher = open_source(
        job.teacher.model, field="teacher.model", revision=job.teacher.revision, job=job, context=context
    )
    dataset = open_source(
        job.dataset.source, field="dataset.source", revision=job.dataset.revision, job=job, context=context
    )
    context.events.info(f"looks at {job.teacher.model} and {job.dataset.source}")
    model_files = teacher.model_files()
    splits = dataset.text_files(job.dataset)
    resolved = {
        "teacher": _resolved(job.teacher.model, teacher, {"model": model_files}),
        "dataset": _resolved(job.dataset.source, dataset, {"train": splits.train, "validation": splits.validation}),
    }
    key = content_key(job.dataset, teacher=resolved["teacher"].digest, text=resolved["dataset"].digest)
    artifact = context.store.find(f"prepare-{key}")
    cached = artifact is not None
    if artifact is None:
        artifact = _make(job, context, key, resolved, (teacher, model_files), (dataset, splits))
    found = PrepareResult.model_validate(artifact.manifest.result)
    _check_length(found, job.dataset)
    # The same content may have come from elsewhere the first time.
    told = {"resolved_teacher": resolved["teacher"], "resolved_dataset": resolved["dataset"]}
    found = found.model_copy(update={**told, "cached": cached})
    published = Published(
        artifact=artifact.name,
        watched=[*teacher.watched(), *dataset.watched()],
        result={name: value for name, value in found.to_json().items() if name.startswith("resolved")},
    )
    context.store.record_published(job.fingerprint, published)
    return found


def content_key(dataset: DatasetConfig, *, teacher: str, text: str) -> str:
    """Key of the artifact: digests of the teacher's and the text's files, and how documents are made of the latter."""
    fields = semantic_fields(dataset)
    # Where the files came from is no part of what they are.
    fields = {name: value for name, value in fields.items() if name not in ("source", "config", "revision")}
    fields["documents"] = documents.resolve(dataset.documents, dataset.source).value
    return digest({"version": SCHEMA_VERSION, "phase": "prepare", "dataset": fields, "teacher": teacher, "text": text})


def _check_length(found: PrepareResult, dataset: DatasetConfig) -> None:
    """Say now, and not on a GPU, that there is less text than one sequence; the artifact serves shorter ones."""
    _check_positions(found.teacher, dataset)
    fault = text_fault(dataset, train_tokens=found.train_tokens, validation_tokens=found.validation_tokens)
    if fault:
        raise UserError(fault)


def _check_positions(teacher: Architecture, dataset: DatasetConfig) -> None:
    fault = sequence_fault(teacher, dataset.sequence_length)
    if fault:
        raise UserError(fault)


def _resolved(source: str, opened: Source, files: dict[str, Sequence[SourceFile]]) -> ResolvedSource:
    content = {role: [[file.name, file.size, file.digest] for file in found] for role, found in files.items()}
    return ResolvedSource(source=source, revision=opened.revision, digest=digest(content))


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
    model_paths = teacher.fetch(model_files)
    original = model_paths[0].parent
    with _told_of(original, job.teacher.model):
        architecture = inspect(original).architecture
        tokenizer = load(original)
    _check_positions(architecture, job.dataset)  # before all the text is tokenized
    train = _opened(splits.train, dataset, job.dataset.text_column)
    validation = _opened(splits.validation, dataset, job.dataset.text_column)
    with context.store.draft("prepare", key) as draft:
        folder = draft.path / "model"
        folder.mkdir()
        for file, path in zip(model_files, model_paths, strict=True):
            context.stop_if_requested()
            if not (teacher.private and _link(path, folder / file.name, file, draft)):
                _copy(path, folder / file.name, file, draft)
        data = draft.path / "data"
        data.mkdir()
        tokenized = Tokenization(job.dataset, context, folder, tokenizer, data).run(train, validation)
        for writer in tokenized.writers.values():
            for path, sha256 in writer.digests.items():
                draft.hashed(path, sha256)
        statistics = describe(
            tokenized.writers, end_of_document=tokenizer.end_of_document, vocabulary=tokenizer.vocabulary
        )
        (data / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
        _check_unchanged([*teacher.watched(), *dataset.watched()])
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


@contextmanager
def _told_of(folder: Path, source: str) -> Iterator[None]:
    """Faults of the teacher's files, as of `teacher.model`."""
    try:
        yield
    except UserError as error:
        # A download lies in a cache whose path says nothing to a person.
        said = str(error)
        raise UserError(
            f"teacher.model: {said.replace(str(folder), source) if source.startswith('hf:') else said}"
        ) from None


def _opened(files: Sequence[SourceFile], dataset: Source, column: str) -> list[TextFile]:
    paths = dataset.fetch(files)
    return [TextFile(p, name=dataset.name_of(f), column=column) for f, p in zip(files, paths, strict=True)]


def _check_unchanged(watched: Sequence[Watched]) -> None:
    files = (found for found in watched if not Path(found.path).is_dir())  # what is added meanwhile doesn't matter
    changed = next((found for found in files if not found.unchanged()), None)
    if changed is not None:
        raise TransientError(f"{changed.path} changed while it was read; try again")


def _link(path: Path, target: Path, file: SourceFile, draft: Draft) -> bool:
    """Give a file that is the store's own a second name, which takes no space. Whether that could be done."""
    try:
        os.link(path.resolve(), target)
    except OSError:  # a file system without hard links
        return False
    if len(file.digest) == 64:
        draft.hashed(target, file.digest)
    return True


def _copy(path: Path, target: Path, file: SourceFile, draft: Draft) -> None:
    """Copy a file into the draft and hash it on the way."""
    found = hashlib.sha256()
    with path.open("rb") as source, target.open("wb") as copy:
        while piece := source.read(_CHUNK):
            copy.write(piece)
            found.update(piece)
    if len(file.digest) == 64 and found.hexdigest() != file.digest:
        raise TransientError(f"{path} changed while it was read; try again")
    draft.hashed(target, found.hexdigest())
