"""Documents to tokens, in parallel and in order, with the held-out documents picked out on the way."""

import hashlib
import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np

from compression_pipeline.errors import TransientError
from compression_pipeline.machine import die_with_parent

from .documents import Document, Long, Marked, Spans
from .indexed import token_type
from .parts import LONG, parts
from .tokenizer import CannotEncode, TeacherTokenizer, encodings_of, stored, tokens_of
from .words import WordEncoder, pattern_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_CHARACTERS = 512 * 1024
BATCH_DOCUMENTS = 4096
WORTHWHILE = 512 * 1024
"""Characters that a process has encoded before it looks how words can be kept, which takes about as long."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Held:
    """Which documents are held out: those whose hash, as a share of all hashes, is below `fraction`.

    The hash is of the text and the seed alone, so the choice is the same in whatever order, by however many workers and
    beside whatever other documents; documents of the same text always stay together, so none is both trained on and
    validated on. `at_most`: a hash that is held out too, whatever its share.
    """

    seed: int
    fraction: float
    at_most: int = -1

    def hash(self, pieces: Iterable[str]) -> int:
        """64 bits, of a text in whatever pieces."""
        found = hashlib.blake2b(digest_size=8, key=self.seed.to_bytes(8, "little"))
        for piece in pieces:
            found.update(piece.encode("utf-8", "surrogatepass"))
        return int.from_bytes(found.digest(), "little")

    def takes(self, hashed: int) -> bool:
        return hashed < int(self.fraction * 2**64) or hashed <= self.at_most


@dataclass(frozen=True)
class Encoded:
    """Tokens of some documents, one after the other, and the length of each in tokens."""

    tokens: bytes
    lengths: list[int]
    mask: bytes = b""
    """Where not all is learned, a byte a token: 1 if it is."""


@dataclass(frozen=True)
class Batch:
    """Texts to encode: documents, or one part of a document that is long."""

    first: int  # number of the first document, from 0
    texts: list[str]
    learned: list[Spans] | None = None  # of each text, its characters that are learned; None: all of them
    part: bool = False
    last: bool = True  # of the document's parts
    hash: int | None = None  # of the whole document, where it comes in parts and some are held out


@dataclass(frozen=True)
class EncodedBatch:
    """The tokens of a batch: of documents that are kept and of those held out.

    The tokens of documents end with an end-of-document token, and those of a part are its own alone.
    """

    kept: Encoded
    held: Encoded
    tokens: int
    lowest_hash: int | None  # of the batch, where anything is held out
    batch: Batch  # without its texts


class Encoder:
    """Encodes batches in this process: the first ones by the tokenizer, then by the words that it met, if it allows."""

    def __init__(self, tokenizer: TeacherTokenizer) -> None:
        self._backend = tokenizer.backend()
        self._pattern = pattern_of(self._backend)
        self._words: WordEncoder | None = None
        self._characters = 0
        self._end = tokenizer.end_of_document
        self._dtype = token_type(tokenizer.largest)

    def encode(self, batch: Batch, held: Held | None) -> EncodedBatch:
        """The tokens of each text. Raises CannotEncode, with the number of the document."""
        if batch.part:
            hashes = [] if batch.hash is None else [batch.hash]
        else:
            hashes = [held.hash([text]) for text in batch.texts] if held else []
        end = b"" if batch.part else stored([self._end], self._dtype)
        size = self._dtype.itemsize
        sides: tuple[list[bytes], list[bytes]] = ([], [])
        masks: tuple[list[bytes], list[bytes]] = ([], [])
        lengths: tuple[list[int], list[int]] = ([], [])
        try:
            encoded = self._encode(batch)
        except CannotEncode as error:
            raise CannotEncode(batch.first + error.number, error.reason) from error
        for number, (found, offsets) in enumerate(encoded):
            side = int(held is not None and held.takes(hashes[number]))
            tokens = found + end if found else found
            sides[side].append(tokens)
            lengths[side].append(len(tokens) // size)
            if batch.learned is not None:
                mask = learned(offsets, batch.learned[number])
                masks[side].append(mask + mask[-1:] if end else mask)
        kept, out = (
            Encoded(b"".join(tokens), found, b"".join(mask))
            for tokens, found, mask in zip(sides, lengths, masks, strict=True)
        )
        done = replace(batch, texts=[], learned=None)
        return EncodedBatch(kept, out, sum(map(sum, lengths)), min(hashes, default=None), done)

    def _encode(self, batch: Batch) -> Iterator[tuple[bytes, Sequence[tuple[int, int]]]]:
        """The tokens of each text and, if only a part is learned, which characters each is of. Raises CannotEncode."""
        if batch.learned is not None:
            marked = encodings_of(self._backend, batch.texts, offsets=True)
            return ((stored(found.ids, self._dtype), found.offsets) for found in marked)
        if self._pattern is not None and self._characters >= WORTHWHILE:
            words = WordEncoder(self._backend, self._pattern, self._dtype)
            if words.agrees(batch.texts):
                self._words = words
            else:
                logger.warning("texts do not have the tokens of their words, so words are not kept: this takes longer")
            self._pattern = None
        self._characters += sum(map(len, batch.texts))
        if self._words:
            return ((found, ()) for found in self._words.tokens(batch.texts))
        return ((found, ()) for found in tokens_of(self._backend, batch.texts, self._dtype))


def learned(offsets: Sequence[tuple[int, int]], spans: Spans) -> bytes:
    """A byte a token: 1 if any of its characters is learned, so also if it begins before them. The token that ends a
    document is as the one before it.

    `offsets`: of each token, the range of its characters. One that a tokenizer trims, a space, is at its own end.
    """
    places = np.array(offsets, np.int64).reshape(-1, 2)
    begin, end = places[:, 0], places[:, 1]
    found = np.zeros(len(places), np.uint8)
    for first, last in spans:
        found |= (end > first) & ((begin < last) | (end <= last))
    return found.tobytes()


def cut_short(found: EncodedBatch, room: int, end: bytes) -> EncodedBatch:
    """The batch with `room` tokens at most of the documents that are kept; the last one ends there.

    `end`: the end-of-document token, as it is stored.
    """
    size = len(end)
    if found.batch.part:  # whoever adds it adds the end
        left = max(room - 1, 0)
        kept = Encoded(found.kept.tokens[: left * size], [left], found.kept.mask[:left])
        return replace(found, kept=kept, batch=replace(found.batch, last=True))
    lengths, left = list[int](), room
    for length in found.kept.lengths:
        if left < 2:  # no room for a token and an end
            break
        lengths.append(min(length, left))
        left -= lengths[-1]
    tokens, mask = found.kept.tokens[: sum(lengths) * size], found.kept.mask[: sum(lengths)]
    mask = mask[:-1] + mask[-2:-1]
    return replace(found, kept=Encoded(tokens[:-size] + end if tokens else b"", lengths, mask))


def _start_worker(parent: int) -> None:
    die_with_parent(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism


@lru_cache(maxsize=1)
def _encoder(tokenizer: TeacherTokenizer) -> Encoder:
    """The encoder of a worker process, loaded with its first batch."""
    return Encoder(tokenizer)


def _work(tokenizer: TeacherTokenizer, batch: Batch, held: Held | None) -> EncodedBatch:
    return _encoder(tokenizer).encode(batch, held)


def batches(tokenizer: TeacherTokenizer, documents: Iterable[Document], held: Held | None) -> Iterator[Batch]:
    """Documents in batches of about `BATCH_CHARACTERS`, and long ones in parts, so that memory is bounded whatever
    their lengths. Raises CannotEncode.
    """
    cutter = cache(tokenizer.backend)  # made with the first long one
    texts: list[str] = []
    spans: list[Spans] = []
    size = number = 0
    for number, document in enumerate(documents):
        text, marked = (document.text, document.learned) if isinstance(document, Marked) else (document, None)
        if isinstance(text, Long) or len(text) > LONG:
            if texts:
                yield Batch(number - len(texts), texts, spans or None)
                texts, spans, size = [], [], 0
            long = text if isinstance(text, Long) else Long("", partial(_alone, text), partial(_alone, text))
            yield from _in_parts(cutter(), number, long, marked, held)
            continue
        texts.append(text)
        if marked is not None:
            spans.append(marked)
        size += len(text)
        if size >= BATCH_CHARACTERS or len(texts) >= BATCH_DOCUMENTS:
            yield Batch(number + 1 - len(texts), texts, spans or None)
            texts, spans, size = [], [], 0
    if texts:
        yield Batch(number + 1 - len(texts), texts, spans or None)


def _alone(text: str) -> Iterator[str]:
    yield text


def _in_parts(
    cutter: "Tokenizer", number: int, document: Long, marked: Spans | None, held: Held | None
) -> Iterator[Batch]:
    hashed = held.hash(document.look()) if held else None
    before: Batch | None = None
    try:
        for place, text in parts(document.pieces(), cutter, LONG):
            if before is not None:
                yield before
            spans = None if marked is None else [tuple((start - place, end - place) for start, end in marked)]
            before = Batch(number, [text], spans, part=True, last=False, hash=hashed)
    except CannotEncode as error:
        raise CannotEncode(number, error.reason) from error
    if before is not None:
        yield replace(before, last=True)


def encode(
    tokenizer: TeacherTokenizer, documents: Iterable[Document], held: Held | None, *, workers: int
) -> Generator[EncodedBatch, None, None]:
    """Encode documents, in order, by this many processes (1: by this one).

    Raises TransientError where a process is killed, CannotEncode, and what reading the documents raises.
    """
    if workers == 1:
        encoder = Encoder(tokenizer)
        for batch in batches(tokenizer, documents, held):
            yield encoder.encode(batch, held)
        return
    # Spawned, not forked: threads of Arrow and of downloads run in this process.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (os.getpid(),))
    try:
        yield from _in_order(pool, tokenizer, documents, held, ahead=2 * workers)
    except BrokenProcessPool as error:
        raise TransientError(
            "a tokenizing process was killed, most likely for lack of memory; lower dataset.workers or raise prepare's "
            "memory limit"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _in_order(
    pool: Executor, tokenizer: TeacherTokenizer, documents: Iterable[Document], held: Held | None, *, ahead: int
) -> Iterator[EncodedBatch]:
    waiting: deque[Future[EncodedBatch]] = deque()
    for batch in batches(tokenizer, documents, held):
        waiting.append(_submit(pool, tokenizer, batch, held))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _submit(pool: Executor, tokenizer: TeacherTokenizer, batch: Batch, held: Held | None) -> Future[EncodedBatch]:
    try:
        return pool.submit(_work, tokenizer, batch, held)
    except (OSError, ValueError) as error:
        # `submit` starts processes: one that dies meanwhile has its pool close the pipes under it (CPython 3.11, 3.12),
        # so that they are closed, or by then another's and there twice.
        raise BrokenProcessPool(f"no process could be started: {error}") from error
