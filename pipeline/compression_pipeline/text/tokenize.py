"""A dataset's files to the indexed datasets of its two splits."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from compression_pipeline.config import DatasetConfig, DocumentFormat, WeightedSource
from compression_pipeline.context import Context
from compression_pipeline.errors import UserError
from compression_pipeline.store.system import processors

from . import documents
from .documents import Document, Long, Marked
from .encode import Held, cut_short, encode
from .files import TextFile
from .indexed import LONGEST, IndexedWriter, TooLong, token_type
from .tokenizer import CannotEncode, TeacherTokenizer

TRAIN = "train"
VALIDATION = "validation"

PROGRESS_SECONDS = 2.0
SMALL_TEXT = 4 * 1024**2
"""Bytes of files up to which starting processes takes longer than they save."""


@dataclass(frozen=True)
class Tokenized:
    """What was written: a finished writer for each split."""

    writers: dict[str, IndexedWriter]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(writer.tokens for writer in self.writers.values())

    @property
    def documents(self) -> int:
        return sum(len(writer.lengths) for writer in self.writers.values())


class Tokenization:
    """Writes `train.bin/.idx` and `validation.bin/.idx` into a folder."""

    def __init__(
        self,
        dataset: DatasetConfig,
        context: Context,
        tokenizer: TeacherTokenizer,
        into: Path,
        *,
        text: WeightedSource | None = None,
    ) -> None:
        """`text`: which of the dataset's sources, if not the only one. It says what its documents are, not Auto."""
        self._dataset = dataset
        self._text = text or dataset.texts[0]
        self._budget = dataset.budget_of(self._text)
        self._context = context
        self._tokenizer = tokenizer
        self._into = into
        self._empty: tuple[int, str] = 0, ""  # rows with nothing to learn, and where the first one is

    def run(self, train: Sequence[TextFile], validation: Sequence[TextFile]) -> Tokenized:
        """Tokenize. Without validation files, `validationFraction` of the training documents is held out.

        Memory is bounded by the longest row as text: files stream through, and a .txt file, which is one row, in
        pieces. No more training documents are read than `dataset.tokens` asks for. Raises UserError where a split ends
        up without tokens or a text can't be encoded, and what `TextFile` and `encode` raise; Interrupted once the job
        is told to stop.
        """
        progress = _Progress(self._context, [*train, *validation])
        if validation:
            writers = self._write(train, progress, TRAIN, budget=self._budget)
            writers |= self._write(validation, progress, VALIDATION)
        else:
            writers = self._held_out(train)
        for name, writer in writers.items():
            if writer.learned == 0:
                raise UserError(self._nothing(name, writers, held_out=not validation))
            writer.finish()
        rows, first = self._empty
        if rows:
            self._context.events.warning(
                f"{rows:,} rows of {self._text.source} have nothing in {self._text.text_column} to learn and are left "
                f"out; the first one is {first}"
            )
        tokenized = Tokenized(writers, progress.seconds)
        progress.say(tokenized.documents, tokenized.tokens, done=True)
        return tokenized

    def _held_out(self, files: Sequence[TextFile]) -> dict[str, IndexedWriter]:
        held = Held(self._dataset.seed, self._text.validation_fraction)
        for _ in range(2):
            progress, self._empty = _Progress(self._context, files), (0, "")
            writers = self._write(files, progress, TRAIN, held=held, budget=self._budget)
            if writers[VALIDATION].lengths or progress.lowest_hash is None:
                break
            # Too few documents for such a fraction: once more, with the one that comes first.
            held = replace(held, at_most=progress.lowest_hash)
        return writers

    def _write(
        self,
        files: Sequence[TextFile],
        progress: "_Progress",
        name: str,
        held: Held | None = None,
        *,
        budget: int | None = None,
    ) -> dict[str, IndexedWriter]:
        """`budget`: tokens of `name` after which no more is read; the document that would exceed it is cut short."""
        dtype = token_type(self._tokenizer.largest)
        masked = self._text.prompt_column is not None
        writers = {
            one: IndexedWriter(self._into / one, dtype, masked=masked)
            for one in ([name, VALIDATION] if held else [name])
        }
        total = sum(file.path.stat().st_size for file in files)
        workers = 1 if total < SMALL_TEXT else self._dataset.workers or processors()
        end = np.array([self._tokenizer.end_of_document], dtype).tobytes()
        encoded = encode(self._tokenizer, self._documents(files), held, workers=workers)
        number = 0
        try:
            for found in encoded:
                self._context.stop_if_requested()
                number = found.batch.first
                # The end of a document in parts comes behind its last one.
                comes = len(found.kept.tokens) // dtype.itemsize + (found.batch.part and found.batch.last)
                full = budget is not None and bool(found.kept.lengths) and writers[name].tokens + comes >= budget
                if budget is not None and full:
                    found = cut_short(found, budget - writers[name].tokens, end)
                for one, side in ((name, found.kept), (VALIDATION, found.held)):
                    if found.batch.part and side.lengths:
                        writers[one].add_part(side.tokens, end if found.batch.last else None, side.mask)
                    elif side.lengths:
                        writers[one].add(side.tokens, side.lengths, side.mask)
                whole = len(found.kept.lengths) + len(found.held.lengths) if found.batch.last else 0
                progress.add(found.lowest_hash, whole, found.tokens)
                if full:
                    break
        except CannotEncode as error:
            raise UserError(
                f"{self._place(files, error.number)}: the teacher's tokenizer can't encode this text ({error.reason}); "
                "remove it, or give the tokenizer what it lacks, such as an unk_token of its vocabulary"
            ) from error
        except TooLong as error:
            raise UserError(
                f"{self._place(files, number)}: the document has {LONGEST:,} tokens or more, which the format of "
                "tokenized text can't hold; split it into several"
            ) from error
        finally:
            encoded.close()  # its processes
            for writer in writers.values():
                writer.close()
        return writers

    def _documents(self, files: Iterable[TextFile]) -> Iterator[Document]:
        if self._text.documents is DocumentFormat.WIKITEXT_ARTICLES:
            # An article may go on in the next file.
            return documents.wikitext_articles(chain.from_iterable(file.lines() for file in files))
        return documents.rows(row for file in files for row in self._noted(file))

    def _noted(self, file: TextFile) -> Iterator[Document]:
        """The rows of a file; those with a prompt and nothing behind it are noted."""
        for row in file.rows():
            if isinstance(row, Marked) and not row.teaches:
                count, first = self._empty
                self._empty = count + 1, first or file.place
            yield row

    def _place(self, files: Sequence[TextFile], number: int) -> str:
        """File and row of a document by its number, from 0; they are read once more up to there."""
        reached: list[TextFile] = []

        def noted() -> Iterator[TextFile]:
            for file in files:
                reached[:] = [file]
                yield file

        document = next(islice(self._documents(noted()), number, None))
        return document.where if isinstance(document, Long) else reached[0].place

    def _nothing(self, name: str, writers: dict[str, IndexedWriter], *, held_out: bool) -> str:
        source = f"spec.dataset.source: {self._text.source}"
        if self._text.prompt_column is not None and not (held_out and any(one.learned for one in writers.values())):
            return (
                f"{source} has no token of {self._text.text_column} in its split for {name}, so nothing to learn "
                f"behind what is in {self._text.prompt_column} (dataset.promptColumn); raise dataset.tokens, if it is "
                "set, or give more text"
            )
        if not any(writer.lengths for writer in writers.values()):
            return f"{source} is empty: it has no document with any text in it"
        if held_out:
            return (
                f"{source} has too few different documents to train on some and hold out others; give more, or name a "
                "dataset.validationSplit"
            )
        return f"{source} has no text in its split for {name}; name another with dataset.{name}Split"


class _Progress:
    """Says how far it is, at most every `PROGRESS_SECONDS`."""

    def __init__(self, context: Context, files: Sequence[TextFile]) -> None:
        self.lowest_hash: int | None = None
        self._context = context
        self._files = files
        self._total = sum(file.path.stat().st_size for file in files)
        self._start = self._said = time.monotonic()
        self._documents = self._tokens = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def add(self, lowest_hash: int | None, documents: int, tokens: int) -> None:
        if lowest_hash is not None:
            self.lowest_hash = lowest_hash if self.lowest_hash is None else min(self.lowest_hash, lowest_hash)
        self._documents += documents
        self._tokens += tokens
        if time.monotonic() - self._said >= PROGRESS_SECONDS:
            self._said = time.monotonic()
            self.say(self._documents, self._tokens)

    def say(self, documents: int, tokens: int, *, done: bool = False) -> None:
        seconds = max(self.seconds, 1e-9)
        position = self._total if done else min(self._total, sum(file.position for file in self._files))
        eta = seconds * (self._total - position) / position if position else None
        self._context.events.progress(
            position,
            self._total,
            unit="bytes",
            tokens_per_second=tokens / seconds,
            eta_seconds=eta,
            documents=documents,
            documents_per_second=documents / seconds,
            tokens=tokens,
            doing="tokenize",
        )
